-- Commits changes of services, each independently of the others: revision + 1, the record in both forms, its lease and
-- its event.
-- KEYS[12...] documents of the services
-- ARGV     1 maximum stream length, then 16 for each service (the fields of Commit in groups.py):
--          1 epoch  2 newest revision that the caller has applied in it  3 name
--          4 expected revision (0 = must not exist)  5 put | touch | delete
--          6 identity that becomes the owner of a new service, or ''
--          7 1 = refuse a service of another owner, and with put own a service without one
--          8 maximum number of services of that owner (0 = no limit)  9 event type  10 reason
--          11 record without its revision  12 document up to its revision  13 ttl in ms (0 = permanent)
--          14 1 = start a new lease, 0 = keep the lease unless its ttl changes
--          15 newest probe result to store ('=' = keep the stored one, '' = delete it)
--          16 newest probe result that the caller has read ('' = none, '*' = any)
-- Returns  for each {'ok', revision} or {'conflict', newest revision, revision of the service} or {'epoch'} or {'owner'}
--          or {'limit'}
local FIRST, EACH = 2, 16
local max_length = ARGV[1]
local now = now_ms()
local start = lease_start(now)

local function commit(document, epoch, applied, name, expected, operation, owner, exclusive, max_services, event_type,
    reason, record, json, ttl_text, renew, check, seen_check)
  if not continues(epoch, applied) then return {'epoch'} end
  local before = redis.call('HGET', RECORDS, name)
  local current = before and revision_of(before) or 0
  if current ~= tonumber(expected) then return {'conflict', head(), current} end
  if current == 0 then before = nil end
  if seen_check ~= '*' then
    local stored_check = redis.call('HGET', CHECKS, name)
    if (stored_check or '') ~= seen_check then return {'conflict', head(), current} end
  end
  if exclusive == '1' and has_other_owner(name, owner) then return {'owner'} end
  -- Only put changes the owner, because only the event of a change reaches the other processes.
  local adopts = owner ~= '' and operation == 'put' and (current == 0 or exclusive == '1') and
    redis.call('HEXISTS', OWNERS, name) == 0
  if adopts and max_services ~= '0' and
      tonumber(redis.call('HGET', OWNED, owner) or '0') >= tonumber(max_services) then
    return {'limit'}
  end

  local revision = current
  if operation == 'delete' then
    revision = publish(max_length, now, event_type, reason, name, nil, before)
    delete_service(name, document)
    return {'ok', revision}
  end
  if operation == 'put' then
    local stored
    local owner_after = adopts and owner or current ~= 0 and redis.call('HGET', OWNERS, name)
    revision, stored = publish(max_length, now, event_type, reason, name, record, before, nil, owner_after)
    redis.call('HSET', RECORDS, name, stored)
  end
  if adopts then add_owner(name, owner) end
  if check == '' then
    redis.call('HDEL', CHECKS, name)
  elseif check ~= '=' then
    redis.call('HSET', CHECKS, name, check)
  end

  local ttl = tonumber(ttl_text)
  local deadline = current ~= 0 and redis.call('ZSCORE', LEASES, name)
  if renew == '1' or not deadline or redis.call('HGET', TTLS, name) ~= ttl_text then
    deadline = ttl == 0 and '+inf' or int(start + ttl)
    redis.call('ZADD', LEASES, deadline, name)
    redis.call('HSET', TTLS, name, ttl_text)
  end
  json = json .. int(revision) .. '}'
  if ttl == 0 then
    redis.call('SET', document, json)
  else
    redis.call('SET', document, json, 'PXAT', int(tonumber(deadline)))
  end
  -- SREM must come last: after a write that needs no memory, Redis no longer refuses those that do.
  if current ~= 0 then redis.call('SREM', BARE, name) end
  return {'ok', revision}
end

local answers = {}
for i = 1, #KEYS - COMMON do
  local at = FIRST + (i - 1) * EACH
  answers[i] = commit(KEYS[COMMON + i], unpack(ARGV, at, at + EACH - 1))
end
return answers

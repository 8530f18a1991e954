-- Changes services one after the other, each of them or not: revision + 1, both forms of the record, its lease and its
-- event.
-- KEYS[12...] the services' documents
-- ARGV     1 stream bound, then 15 for each service:
--          1 epoch  2 name  3 expected revision (0 = absent)  4 put | touch | delete  5 event type  6 reason
--          7 record without its revision  8 document up to its revision  9 ttl in ms (0 = permanent)
--          10 1 = a new lease, 0 = keep the lease if its ttl stays  11 1 = forget the newest check
--          12 identity that becomes the owner of a new service, or ''
--          13 1 = also of one without an owner, and refuse one of another owner
--          14 most services of that owner (0 = any number)  15 newest revision that the caller has applied
-- Gives    for each {'ok', revision} or {'conflict', newest revision} or {'epoch'} or {'owner'} or {'limit'}
local FIRST, EACH = 2, 15
local maxlen = ARGV[1]
local now = now_ms()
local begins = lease_begins(now)

local function commit(document, epoch, name, expected, op, kind, reason, record, json, ttl_text, renew, forget_check, owner,
    exclusive, most, seen)
  if not goes_on_from(epoch, seen) then return {'epoch'} end
  local before = redis.call('HGET', RECORDS, name)
  local current = before and revision_of(before) or 0
  if current ~= tonumber(expected) then return {'conflict', head()} end
  if exclusive == '1' and is_of_another(name, owner) then return {'owner'} end
  local adopts = owner ~= '' and op ~= 'delete' and (current == 0 or exclusive == '1') and
    redis.call('HEXISTS', OWNERS, name) == 0
  if adopts and most ~= '0' and tonumber(redis.call('HGET', OWNED, owner) or '0') >= tonumber(most) then
    return {'limit'}
  end

  local revision = current
  if op == 'delete' then
    revision = publish(maxlen, now, kind, reason, name, nil, before)
    forget(name, document)
    return {'ok', revision}
  end
  if op == 'put' then
    local stored
    local after = adopts and owner or current ~= 0 and redis.call('HGET', OWNERS, name)
    revision, stored = publish(maxlen, now, kind, reason, name, record, before, nil, after)
    redis.call('HSET', RECORDS, name, stored)
  end
  if adopts then
    redis.call('HSET', OWNERS, name, owner)
    redis.call('HINCRBY', OWNED, owner, 1)
  end
  if forget_check == '1' then redis.call('HDEL', CHECKS, name) end

  local ttl = tonumber(ttl_text)
  local deadline = current ~= 0 and redis.call('ZSCORE', LEASES, name)
  if renew == '1' or not deadline or redis.call('HGET', TTLS, name) ~= ttl_text then
    deadline = ttl == 0 and '+inf' or int(begins + ttl)
    redis.call('ZADD', LEASES, deadline, name)
    redis.call('HSET', TTLS, name, ttl_text)
  end
  json = json .. int(revision) .. '}'
  if ttl == 0 then
    redis.call('SET', document, json)
  else
    redis.call('SET', document, json, 'PXAT', int(tonumber(deadline)))
  end
  -- Last: after any write that takes no memory Redis would no longer refuse those that do.
  if current ~= 0 then redis.call('SREM', BARE, name) end
  return {'ok', revision}
end

local answers = {}
for i = 1, #KEYS - COMMON do
  local at = FIRST + (i - 1) * EACH
  answers[i] = commit(KEYS[COMMON + i], unpack(ARGV, at, at + EACH - 1))
end
return answers

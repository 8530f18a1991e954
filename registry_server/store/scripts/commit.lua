-- Changes one service, or nothing: revision + 1, both forms of the record, its lease and its event.
-- KEYS[12] the service's document
-- ARGV     1 epoch  2 name  3 expected revision (0 = absent)  4 put | touch | delete  5 event type  6 reason
--          7 record without its revision  8 document up to its revision  9 ttl in ms (0 = permanent)
--          10 1 = a new lease, 0 = keep the lease if its ttl stays  11 1 = forget the newest check  12 stream bound
--          13 identity that becomes the owner of a new service, or ''
--          14 1 = also of one without an owner, and refuse one of another owner
--          15 most services of that owner (0 = any number)  16 newest revision that the caller has applied
-- Gives    {'ok', revision} or {'conflict', newest revision} or {'epoch'} or {'owner'} or {'limit'}
local document = KEYS[12]
local owner = ARGV[13]
local name, op, ttl = ARGV[2], ARGV[4], tonumber(ARGV[9])

if not goes_on_from(ARGV[1], ARGV[16]) then return {'epoch'} end
local before = redis.call('HGET', RECORDS, name)
local current = before and revision_of(before) or 0
if current ~= tonumber(ARGV[3]) then return {'conflict', head()} end
if ARGV[14] == '1' and is_of_another(name, owner) then return {'owner'} end
local adopts = owner ~= '' and op ~= 'delete' and (current == 0 or ARGV[14] == '1') and
  redis.call('HEXISTS', OWNERS, name) == 0
if adopts and ARGV[15] ~= '0' and tonumber(redis.call('HGET', OWNED, owner) or '0') >= tonumber(ARGV[15]) then
  return {'limit'}
end

local now = now_ms()
local revision = current
if op == 'delete' then
  revision = publish(ARGV[12], now, ARGV[5], ARGV[6], name, nil, before)
  forget(name, document)
  return {'ok', revision}
end
if op == 'put' then
  local record
  local after = adopts and owner or redis.call('HGET', OWNERS, name)
  revision, record = publish(ARGV[12], now, ARGV[5], ARGV[6], name, ARGV[7], before, nil, after)
  redis.call('HSET', RECORDS, name, record)
end
if adopts then
  redis.call('HSET', OWNERS, name, owner)
  redis.call('HINCRBY', OWNED, owner, 1)
end
if ARGV[11] == '1' then redis.call('HDEL', CHECKS, name) end

local deadline = redis.call('ZSCORE', LEASES, name)
if ARGV[10] == '1' or not deadline or redis.call('HGET', TTLS, name) ~= ARGV[9] then
  deadline = ttl == 0 and '+inf' or int(lease_begins(now) + ttl)
  redis.call('ZADD', LEASES, deadline, name)
  redis.call('HSET', TTLS, name, ARGV[9])
end
local json = ARGV[8] .. int(revision) .. '}'
if ttl == 0 then
  redis.call('SET', document, json)
else
  redis.call('SET', document, json, 'PXAT', int(tonumber(deadline)))
end
-- Last: after any write that takes no memory Redis would no longer refuse those that do.
redis.call('SREM', BARE, name)
return {'ok', revision}

-- Removes up to ARGV[3] services whose leases have expired.
-- ARGV     1 document key prefix  2 sweep interval in ms  3 batch size  4 event type  5 reason
--          6 maximum stream length  7 epoch or ''  8 newest revision that the caller has applied in it
-- Returns  {names removed, ms until the next lease expires or -1, ms by which all deadlines were shifted,
--           up to ARGV[3] names whose documents must be written again, number of leases that can expire,
--           {revision, sizes of records, leases, ttls, owners and owned}}, or nothing if the store does not continue
--           the caller's history: in a store that needs a repair, leases do not run
-- A lease runs only while a process can receive heartbeats: after a period without sweeps (registry or Redis down,
-- clock changed), all deadlines are shifted by its length, and nothing is removed.
if ARGV[7] ~= '' and not continues(ARGV[7], ARGV[8]) then return false end
local interval = tonumber(ARGV[2])
local now = now_ms()
local last = tonumber(redis.call('GET', SWEEP)) or now
redis.call('SET', SWEEP, int(now))

local expired, shift = {}, 0
if now - last > 2 * interval or last - now > interval then
  shift = now - last
  local leases = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(+inf', 'WITHSCORES')
  for i = 1, #leases, 2 do
    set_deadline(leases[i], ARGV[1] .. leases[i], int(tonumber(leases[i + 1]) + shift))
  end
else
  expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', int(now), 'LIMIT', 0, ARGV[3])
  for _, name in ipairs(expired) do
    local before = redis.call('HGET', RECORDS, name)
    if before and revision_of(before) ~= 0 then publish(ARGV[6], now, ARGV[4], ARGV[5], name, nil, before) end
    delete_service(name, ARGV[1] .. name)
  end
end
local following = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local next_in = following[2] and math.max(tonumber(following[2]) - now, 0) or -1
local active = redis.call('ZCOUNT', LEASES, '-inf', '(+inf')
local sizes = {
  head(),
  redis.call('HLEN', RECORDS),
  redis.call('ZCARD', LEASES),
  redis.call('HLEN', TTLS),
  redis.call('HLEN', OWNERS),
  redis.call('HLEN', OWNED),
}
return {expired, next_in, shift, redis.call('SRANDMEMBER', BARE, ARGV[3]), active, sizes}

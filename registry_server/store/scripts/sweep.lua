-- Removes services whose lease has run out, at most ARGV[3] of them.
-- ARGV     1 prefix of documents  2 sweep period in ms  3 batch  4 event type  5 reason  6 stream bound
--          7 epoch or ''  8 newest revision that the caller has applied in it
-- Gives    {names removed, ms until the next lease ends or -1, ms by which all leases were moved,
--           names whose document is to be written again, at most ARGV[3], leases that are left}, or nothing if the
--           store does not go on from there: leases of a store that is to be repaired do not run
-- A lease only runs while somebody is there to take heartbeats: after a time without sweeps (registry or Redis away,
-- clock set) all deadlines move by its length, and nothing is removed.
if ARGV[7] ~= '' and not goes_on_from(ARGV[7], ARGV[8]) then return false end
local period = tonumber(ARGV[2])
local now = now_ms()
local last = tonumber(redis.call('GET', SWEEP) or int(now))
redis.call('SET', SWEEP, int(now))

local due, moved = {}, 0
if now - last > 2 * period or last - now > period then
  moved = now - last
  local leases = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(+inf', 'WITHSCORES')
  for i = 1, #leases, 2 do
    set_deadline(leases[i], ARGV[1] .. leases[i], int(tonumber(leases[i + 1]) + moved))
  end
else
  due = redis.call('ZRANGEBYSCORE', LEASES, '-inf', int(now), 'LIMIT', 0, ARGV[3])
  for _, name in ipairs(due) do
    local before = redis.call('HGET', RECORDS, name)
    if before then publish(ARGV[6], now, ARGV[4], ARGV[5], name, nil, before) end
    forget(name, ARGV[1] .. name)
  end
end
local following = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local next_in = following[2] and math.max(tonumber(following[2]) - now, 0) or -1
local left = redis.call('ZCOUNT', LEASES, '-inf', '(+inf')
return {due, next_in, moved, redis.call('SRANDMEMBER', BARE, ARGV[3]), left}

-- Ends a repair, so that the store accepts commits again.
-- KEYS[12] repair  KEYS[13] merged
-- ARGV     1 id of the process that has the turn  2 epoch from now on  3 revision  4 1 = delete the events
--          5 epoch that was restored  6 newest revision that it has in common with the store  7 its newest revision
-- Returns  1, or 0 if the process has lost its turn
local repair, merged = KEYS[12], KEYS[13]
if redis.call('HGET', repair, 'id') ~= ARGV[1] then return 0 end
redis.call('SET', EPOCH, ARGV[2])
redis.call('SET', REVISION, ARGV[3])
redis.call('SET', SWEEP, int(now_ms())) -- the leases have just started, so the next sweep must not shift them
if ARGV[4] == '1' then redis.call('DEL', EVENTS) end
-- A process that arrives later and holds no newer revision of that epoch has nothing to restore.
if ARGV[5] ~= ARGV[2] then redis.call('HSET', merged, ARGV[5], ARGV[6] .. ' ' .. ARGV[7]) end
redis.call('DEL', repair)
return 1

-- Ends a repair: from here on there are commits again.
-- KEYS[12] repair  KEYS[13] merged
-- ARGV     1 id of the process whose turn it is  2 epoch that begins or goes on  3 revision  4 1 = without its events
--          5 epoch of what was put back  6 revision up to which it agreed with the store  7 its newest revision
-- Gives    1, or 0 if it is no longer its turn
local repair, merged = KEYS[12], KEYS[13]
if redis.call('HGET', repair, 'id') ~= ARGV[1] then return 0 end
redis.call('SET', EPOCH, ARGV[2])
redis.call('SET', REVISION, ARGV[3])
redis.call('SET', SWEEP, int(now_ms())) -- leases have just begun anew: they do not move
if ARGV[4] == '1' then redis.call('DEL', EVENTS) end
-- Whoever comes late and knows no more of that epoch has nothing to add.
if ARGV[5] ~= ARGV[2] then redis.call('HSET', merged, ARGV[5], ARGV[6] .. ' ' .. ARGV[7]) end
redis.call('DEL', repair)
return 1

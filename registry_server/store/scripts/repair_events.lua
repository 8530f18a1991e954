-- Restores events from a process's history.
-- KEYS[12] repair
-- ARGV     1 id of the process that has the turn  2 ms by which its turn is extended  3 maximum stream length
--          4 1 = clear the stream first
--          5... revision, epoch, type, reason, ms, name, record after, record before, error, owner
-- Returns  1, or 0 if the process has lost its turn
local repair = KEYS[12]
if redis.call('HGET', repair, 'id') ~= ARGV[1] then return 0 end
redis.call('HSET', repair, 'until', int(now_ms() + tonumber(ARGV[2])))
if ARGV[4] == '1' then redis.call('DEL', EVENTS) end
for i = 5, #ARGV, 10 do
  redis.call('XADD', EVENTS, 'MAXLEN', '~', ARGV[3], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'k', ARGV[i + 2],
    'r', ARGV[i + 3], 't', ARGV[i + 4], 'n', ARGV[i + 5], 's', ARGV[i + 6], 'b', ARGV[i + 7], 'x', ARGV[i + 8],
    'o', ARGV[i + 9])
end
return 1

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
  append_event(ARGV[3], unpack(ARGV, i, i + 9))
end
return 1

-- Keeps the list of live processes.
-- KEYS[10] members
-- ARGV     1 id of this process  2 ms after which a silent process is taken for dead  3 stay | leave
-- Gives    ids of the live processes
local members = KEYS[10]
local now = now_ms()
if ARGV[3] == 'leave' then
  redis.call('ZREM', members, ARGV[1])
else
  redis.call('ZADD', members, int(now), ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', members, '-inf', int(now - tonumber(ARGV[2])))
return redis.call('ZRANGE', members, 0, -1)

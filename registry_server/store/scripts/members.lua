-- Maintains the set of live processes.
-- KEYS[12] members
-- ARGV     1 id of this process  2 ms without an announcement after which a process is removed  3 stay | leave
-- Returns  ids of the live processes
local members = KEYS[12]
local now = now_ms()
if ARGV[3] == 'leave' then
  redis.call('ZREM', members, ARGV[1])
else
  redis.call('ZADD', members, int(now), ARGV[1])
end
-- Announcements in the future are removed, too: the clock of Redis was set back. Live processes announce again soon.
redis.call('ZREMRANGEBYSCORE', members, '-inf', '(' .. int(now - tonumber(ARGV[2])))
redis.call('ZREMRANGEBYSCORE', members, '(' .. int(now + tonumber(ARGV[2])), '+inf')
return redis.call('ZRANGE', members, 0, -1)

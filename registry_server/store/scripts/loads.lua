-- Shares the loads of services: adds those that this process has received, and returns what was added since its last
-- call. They are neither revisions nor events, and are lost with Redis.
-- KEYS[12] loads
-- ARGV     1 id of the newest entry that this process has read  2 id of this process
--          3 ms for which entries are kept  4 maximum number of entries to return  5 loads to add, or ''
-- Returns  {now in ms, entries}
local loads = KEYS[12]
local now = now_ms()
if ARGV[5] ~= '' then
  redis.call('XADD', loads, 'MINID', '~', int(now - tonumber(ARGV[3])), '*', ARGV[2], ARGV[5])
  redis.call('PEXPIREAT', loads, int(now + tonumber(ARGV[3])))
end
local entries = redis.call('XRANGE', loads, '(' .. ARGV[1], '+', 'COUNT', ARGV[4])
for _, entry in ipairs(entries) do
  if entry[2][1] == ARGV[2] then entry[2] = {} end -- the process knows them
end
return {now, entries}

-- Restores services from a process's replica, with their revisions, or removes them. Their leases start again.
-- KEYS[12] repair
-- ARGV     1 id of the process that has the turn  2 ms by which its turn is extended  3 plan  4 document key prefix
--          5... name, record ('' = remove), ttl in ms, owner or ''
-- Returns  1, or 0 if the process has lost its turn
local repair = KEYS[12]
if redis.call('HGET', repair, 'id') ~= ARGV[1] then return 0 end
local now = now_ms()
redis.call('HSET', repair, 'until', int(now + tonumber(ARGV[2])), 'plan', ARGV[3])
for i = 5, #ARGV, 4 do
  local name, record, ttl, owner = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if record == '' then
    delete_service(name, ARGV[4] .. name)
  else
    redis.call('HSET', RECORDS, name, record)
    redis.call('HSET', TTLS, name, int(ttl))
    redis.call('ZADD', LEASES, ttl == 0 and '+inf' or int(now + ttl), name)
    remove_owner(name)
    if owner ~= '' then add_owner(name, owner) end
    redis.call('SADD', BARE, name) -- the next sweeps report it, so that a process writes its document
  end
end
return 1

-- Puts services back as a process remembers them, with their revisions, or away. Their leases begin anew.
-- KEYS[12] repair
-- ARGV     1 id of the process whose turn it is  2 ms that its turn goes on  3 its plan  4 prefix of documents
--          5... name, record ('' = none), ttl in ms, owner or ''
-- Gives    1, or 0 if it is no longer its turn
local repair = KEYS[12]
if redis.call('HGET', repair, 'id') ~= ARGV[1] then return 0 end
local now = now_ms()
redis.call('HSET', repair, 'until', int(now + tonumber(ARGV[2])), 'plan', ARGV[3])
for i = 5, #ARGV, 4 do
  local name, record, ttl, owner = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  if record == '' then
    forget(name, ARGV[4] .. name)
  else
    redis.call('HSET', RECORDS, name, record)
    redis.call('HSET', TTLS, name, int(ttl))
    redis.call('ZADD', LEASES, ttl == 0 and '+inf' or int(now + ttl), name)
    if owner ~= '' and redis.call('HGET', OWNERS, name) ~= owner then
      disown(name)
      redis.call('HSET', OWNERS, name, owner)
      redis.call('HINCRBY', OWNED, owner, 1)
    end
    redis.call('SADD', BARE, name) -- the next sweeps have its document written
  end
end
return 1

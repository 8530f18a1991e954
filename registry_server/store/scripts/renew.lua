-- Renews leases.
-- ARGV     1 prefix of documents  2... names
-- Gives    {positions of unknown names (from 0), positions of names whose document has expired before its service}
local now = now_ms()
local unknown, bare = {}, {}
for i = 2, #ARGV do
  local name = ARGV[i]
  local ttl = tonumber(redis.call('HGET', TTLS, name))
  if not ttl then
    unknown[#unknown + 1] = i - 2
  elseif ttl > 0 then
    local deadline = int(now + ttl)
    redis.call('ZADD', LEASES, deadline, name)
    if redis.call('PEXPIREAT', ARGV[1] .. name, deadline) == 0 then bare[#bare + 1] = i - 2 end
  end
end
return {unknown, bare}

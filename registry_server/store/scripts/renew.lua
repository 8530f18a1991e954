-- Renews leases.
-- ARGV     1 prefix of documents  2... names
-- Gives    positions of unknown names (from 0)
local now = now_ms()
local unknown = {}
for i = 2, #ARGV do
  local name = ARGV[i]
  local ttl = tonumber(redis.call('HGET', TTLS, name))
  if not ttl then
    unknown[#unknown + 1] = i - 2
  elseif ttl > 0 then
    set_deadline(name, ARGV[1] .. name, int(now + ttl))
  end
end
return unknown

-- Renews leases: all, or none if one is of another owner.
-- ARGV     1 prefix of documents  2 owner, or '' for all services  3... names
-- Gives    positions of unknown names (from 0), or {'owner', name}
if ARGV[2] ~= '' then
  for i = 3, #ARGV do
    if is_of_another(ARGV[i], ARGV[2]) then return {'owner', ARGV[i]} end
  end
end
local now = now_ms()
local unknown = {}
for i = 3, #ARGV do
  local name = ARGV[i]
  local ttl = tonumber(redis.call('HGET', TTLS, name))
  if not ttl then
    unknown[#unknown + 1] = i - 3
  elseif ttl > 0 then
    set_deadline(name, ARGV[1] .. name, int(now + ttl))
  end
end
return unknown

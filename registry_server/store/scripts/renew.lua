-- Renews leases: all, or none if one is of another owner.
-- ARGV     1 prefix of documents  2 owner, or '' for all services  3... names
-- Gives    positions of unknown names (from 0), or {'owner', name}
-- Each call from Lua costs about a microsecond: so two of the three that a lease needs are made for many at once.
local AT_ONCE = 1000 -- arguments that one call takes are bounded by Lua's stack
local FIRST = 3
if ARGV[2] ~= '' then
  for i = FIRST, #ARGV do
    if is_of_another(ARGV[i], ARGV[2]) then return {'owner', ARGV[i]} end
  end
end
local now = lease_begins(now_ms())
local unknown = {}
for first = FIRST, #ARGV, AT_ONCE do
  local last = math.min(first + AT_ONCE - 1, #ARGV)
  local ttls = redis.call('HMGET', TTLS, unpack(ARGV, first, last))
  local deadlines, leases, length = {}, {}, 0
  for i = first, last do
    local ttl = tonumber(ttls[i - first + 1])
    if not ttl then
      unknown[#unknown + 1] = i - FIRST
    elseif ttl > 0 then
      local deadline = deadlines[ttl] or int(now + ttl)
      deadlines[ttl] = deadline
      leases[length + 1], leases[length + 2] = deadline, ARGV[i]
      length = length + 2
    end
  end
  if length > 0 then redis.call('ZADD', LEASES, unpack(leases)) end
  for i = 1, length, 2 do
    expire_document(leases[i + 1], ARGV[1] .. leases[i + 1], leases[i])
  end
end
return unknown

-- Renews leases: all of them, or none if one belongs to another owner.
-- ARGV     1 document key prefix  2 owner, or '' for services of all owners  3... names
-- Returns  positions of unknown names (from 0), or {'owner', name}
-- Each call from Lua costs about one microsecond, so two of the three calls that a lease needs are batched.
local BATCH = 1000 -- Lua's stack limits the number of arguments of one call
local FIRST = 3
if ARGV[2] ~= '' then
  for i = FIRST, #ARGV do
    if has_other_owner(ARGV[i], ARGV[2]) then return {'owner', ARGV[i]} end
  end
end
local now = lease_start(now_ms())
local unknown = {}
for first = FIRST, #ARGV, BATCH do
  local last = math.min(first + BATCH - 1, #ARGV)
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

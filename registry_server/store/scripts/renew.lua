-- Renews the leases of several heartbeats: of each all of them, or none if one belongs to another owner.
-- ARGV     1 document key prefix, then for each heartbeat: owner, or '' for services of all owners; number of names; names
-- Returns  for each heartbeat the positions of unknown names (from 0), or {'owner', name}
-- Each call from Lua costs about one microsecond, so two of the three calls that a lease needs are batched.
local BATCH = 1000 -- Lua's stack limits the number of arguments of one call
local answers = {}
local names, answer_of, position_of = {}, {}, {} -- of all leases to renew
local at = 2
while ARGV[at] do
  local owner, first, last = ARGV[at], at + 2, at + 1 + tonumber(ARGV[at + 1])
  local answer = {}
  if owner ~= '' then
    for i = first, last do
      if has_other_owner(ARGV[i], owner) then
        answer = {'owner', ARGV[i]}
        break
      end
    end
  end
  answers[#answers + 1] = answer
  if #answer == 0 then
    for i = first, last do
      local n = #names + 1
      names[n], answer_of[n], position_of[n] = ARGV[i], answer, i - first
    end
  end
  at = last + 1
end
local now = lease_start(now_ms())
for first = 1, #names, BATCH do
  local last = math.min(first + BATCH - 1, #names)
  local ttls = redis.call('HMGET', TTLS, unpack(names, first, last))
  local deadlines, leases, length = {}, {}, 0
  for i = first, last do
    local ttl = tonumber(ttls[i - first + 1])
    if not ttl then
      local unknown = answer_of[i]
      unknown[#unknown + 1] = position_of[i]
    elseif ttl > 0 then
      local deadline = deadlines[ttl] or int(now + ttl)
      deadlines[ttl] = deadline
      leases[length + 1], leases[length + 2] = deadline, names[i]
      length = length + 2
    end
  end
  if length > 0 then redis.call('ZADD', LEASES, unpack(leases)) end
  for i = 1, length, 2 do
    expire_document(leases[i + 1], ARGV[1] .. leases[i + 1], leases[i])
  end
end
return answers

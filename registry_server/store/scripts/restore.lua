-- Restores what another program removed or corrupted, from the replica of a process.
-- ARGV     1 epoch  2 newest revision that the caller has applied in it  3 commit time of that revision, or ''
--          4... name, record, ttl in ms, owner or ''
-- Returns  number of services that were restored, or nothing if the caller must catch up first
local FIRST, EACH = 4, 4
local MAX_EVENTS = 250 -- that the caller has not applied yet: a few milliseconds
if not continues(ARGV[1], ARGV[2]) then return false end

-- What the caller holds of a service that was changed since is outdated, and that change has written everything.
local changed = {}
local applied = ARGV[2] .. '-0'
local missed = head() - tonumber(ARGV[2])
for _, event in ipairs(redis.call('XRANGE', EVENTS, applied, '+', 'COUNT', MAX_EVENTS)) do
  local fields = {}
  for i = 1, #event[2], 2 do
    fields[event[2][i]] = event[2][i + 1]
  end
  if event[1] ~= applied then
    missed = missed - 1
    changed[fields['n'] or ''] = true
  elseif ARGV[3] ~= '' and fields['t'] ~= ARGV[3] then
    return false -- the store was replaced: that revision is another change
  end
end
if missed ~= 0 then return false end

local now = now_ms()
local restored = 0
for i = FIRST, #ARGV, EACH do
  local name, record, ttl, owner = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if not changed[name] then
    local complete = true
    if redis.call('HGET', RECORDS, name) ~= record then
      complete = false
      redis.call('HSET', RECORDS, name, record)
    end
    if not tonumber(redis.call('HGET', TTLS, name)) then
      complete = false
      redis.call('HSET', TTLS, name, ttl)
    end
    if not redis.call('ZSCORE', LEASES, name) then
      complete = false
      redis.call('ZADD', LEASES, ttl == '0' and '+inf' or int(lease_start(now) + ttl), name)
    end
    if owner ~= '' and redis.call('HGET', OWNERS, name) ~= owner then
      complete = false
      redis.call('HSET', OWNERS, name, owner)
    end
    if not complete then
      restored = restored + 1
      redis.call('SADD', BARE, name) -- the next sweeps report it, so that a process writes its document
    end
  end
end
return restored

-- Counts the services of each owner again, after owners were restored.
-- Returns  1
local counts = {}
for _, owner in ipairs(redis.call('HVALS', OWNERS)) do
  counts[owner] = (counts[owner] or 0) + 1
end
redis.call('DEL', OWNED)
for owner, count in pairs(counts) do
  redis.call('HSET', OWNED, owner, count)
end
return 1

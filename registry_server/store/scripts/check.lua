-- Stores the newest probe result of a service, if the service is still at the revision that was probed.
-- ARGV     1 name  2 serialised Health  3 expected revision
--          4 probe result that it replaces ('' = none, '*' = any)
-- Returns  {'ok'} or {'conflict', newest revision, revision of the service}
local record = redis.call('HGET', RECORDS, ARGV[1])
local current = record and revision_of(record) or 0
if current ~= tonumber(ARGV[3]) then return {'conflict', head(), current} end
if ARGV[4] ~= '*' then
  local stored = redis.call('HGET', CHECKS, ARGV[1])
  if (stored or '') ~= ARGV[4] then return {'conflict', head(), current} end
end
redis.call('HSET', CHECKS, ARGV[1], ARGV[2])
return {'ok'}

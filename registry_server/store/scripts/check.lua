-- Stores the newest probe result of a service, if the service is still at the revision that was probed.
-- ARGV     1 name  2 serialised Health  3 expected revision
-- Returns  {'ok'} or {'conflict', newest revision}
local record = redis.call('HGET', RECORDS, ARGV[1])
if not record or revision_of(record) ~= tonumber(ARGV[3]) then return {'conflict', head()} end
redis.call('HSET', CHECKS, ARGV[1], ARGV[2])
return {'ok'}

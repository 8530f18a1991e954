-- Keeps the newest check of a service, if the service is registered.
-- ARGV     1 name  2 serialised Health
-- Gives    1 if kept, 0 if the service is unknown
if redis.call('HEXISTS', RECORDS, ARGV[1]) == 0 then return 0 end
redis.call('HSET', CHECKS, ARGV[1], ARGV[2])
return 1

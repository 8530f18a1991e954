-- Keeps the results of probes, and renews the leases of those that succeeded.
-- ARGV     1 prefix of documents  2... name, serialised Health, 1 = renew the lease
-- A service that is no longer registered has no result: it would never be forgotten.
local now = lease_begins(now_ms())
for i = 2, #ARGV, 3 do
  local name = ARGV[i]
  local ttl = tonumber(redis.call('HGET', TTLS, name))
  if ttl then
    redis.call('HSET', CHECKS, name, ARGV[i + 1])
    if ARGV[i + 2] == '1' and ttl > 0 then set_deadline(name, ARGV[1] .. name, int(now + ttl)) end
  end
end
return 1

-- Stores probe results and renews the leases of services whose probe succeeded.
-- ARGV     1 document key prefix  2... name, serialised Health ('' = keep the stored one), 1 = renew the lease
-- Returns  1
-- Results of unregistered services are dropped, because nothing would ever delete them.
local now = lease_start(now_ms())
for i = 2, #ARGV, 3 do
  local name = ARGV[i]
  local ttl = tonumber(redis.call('HGET', TTLS, name))
  if ttl then
    if ARGV[i + 1] ~= '' then redis.call('HSET', CHECKS, name, ARGV[i + 1]) end
    if ARGV[i + 2] == '1' and ttl > 0 then set_deadline(name, ARGV[1] .. name, int(now + ttl)) end
  end
end
return 1

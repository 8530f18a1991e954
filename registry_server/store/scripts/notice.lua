-- Publishes an event about an error of the registry itself. It has a revision but concerns no service.
-- ARGV     1 epoch  2 event type  3 reason  4 error text  5 maximum stream length
--          6 newest revision that the caller has applied
-- Returns  {'ok', revision} or {'epoch'}
if not continues(ARGV[1], ARGV[6]) then return {'epoch'} end
return {'ok', (publish(ARGV[5], now_ms(), ARGV[2], ARGV[3], '', nil, nil, ARGV[4]))}

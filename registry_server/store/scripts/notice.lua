-- Publishes an event about an error of the registry itself. It has a revision but concerns no service.
-- ARGV     1 epoch  2 newest revision that the caller has applied in it  3 event type  4 reason  5 error text
--          6 maximum stream length  7 owner of the services that it is about, or empty;
--          stored where other events have the name of the service
-- Returns  {'ok', revision} or {'epoch'}
if not continues(ARGV[1], ARGV[2]) then return {'epoch'} end
return {'ok', (publish(ARGV[6], now_ms(), ARGV[3], ARGV[4], ARGV[7], nil, nil, ARGV[5]))}

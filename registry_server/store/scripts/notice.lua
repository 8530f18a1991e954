-- Tells everyone of a problem of the registry itself: an event with a revision of its own, of no service.
-- ARGV     1 epoch  2 event type  3 reason  4 what went wrong  5 stream bound
--          6 newest revision that the caller has applied
-- Gives    {'ok', revision} or {'epoch'}
if not goes_on_from(ARGV[1], ARGV[6]) then return {'epoch'} end
return {'ok', (publish(ARGV[5], now_ms(), ARGV[2], ARGV[3], '', nil, nil, ARGV[4]))}

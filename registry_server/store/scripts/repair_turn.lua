-- Requests the turn to repair the store. Among the requests of a short period, the newest revision wins.
-- KEYS[12] repair
-- ARGV     1 id of the caller  2 its epoch  3 its revision  4 length of that period in ms  5 length of a turn in ms
--          6 epoch in which the caller found the store, '' for none
-- Returns  {'wait', ms} or {'turn', epoch found, revision found, plan of an abandoned repair}
-- The first request deletes the store's epoch, so that no commit succeeds until the repair has ended.
local repair = KEYS[12]
local id, revision = ARGV[1], tonumber(ARGV[3])
local gather_ms, turn_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local epoch = redis.call('GET', EPOCH) or ''
if epoch ~= ARGV[6] then return {'wait', 0} end -- the repair has ended since

local now = now_ms()
local state = redis.call('HMGET', repair, 'id', 'revision', 'gathers', 'until', 'found', 'plan')
local winner, best, gathers_until, ends = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
if not winner or now > ends then -- no repair, or one whose process died or hangs
  gathers_until = now + gather_ms
  redis.call('HSET', repair, 'id', id, 'epoch', ARGV[2], 'revision', ARGV[3], 'gathers', int(gathers_until),
    'until', int(gathers_until + turn_ms), 'found', state[5] or epoch)
  redis.call('DEL', EPOCH)
  return {'wait', gather_ms}
end
-- A caller that holds nothing newer than the store did when the repair began has nothing to restore.
if winner ~= id and state[5] == ARGV[2] and head() >= revision then return {'wait', ends - now} end
if now < gathers_until then
  if revision > best or (revision == best and id > winner) then
    redis.call('HSET', repair, 'id', id, 'epoch', ARGV[2], 'revision', ARGV[3])
  end
  return {'wait', gathers_until - now}
end
if winner ~= id then return {'wait', math.max(ends - now, 0)} end
redis.call('HSET', repair, 'until', int(now + turn_ms))
return {'turn', state[5], head(), state[6] or ''}

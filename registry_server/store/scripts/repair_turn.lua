-- Asks for the turn to repair the store; of those who ask within a while, who knows most gets it.
-- KEYS[12] repair
-- ARGV     1 id of the caller  2 its epoch  3 its revision  4 ms in which others may ask  5 ms that a turn lasts
--          6 epoch that the caller found, '' for none
-- Gives    {'wait', ms} or {'turn', epoch that was found, revision that was found, plan of a repair that was given up}
-- From the first question on the store has no epoch: nobody can commit until the repair has ended.
local repair = KEYS[12]
local id, revision = ARGV[1], tonumber(ARGV[3])
local gather, lasts = tonumber(ARGV[4]), tonumber(ARGV[5])
local epoch = redis.call('GET', EPOCH) or ''
if epoch ~= ARGV[6] then return {'wait', 0} end -- ended meanwhile

local now = now_ms()
local state = redis.call('HMGET', repair, 'id', 'revision', 'gathers', 'until', 'found', 'plan')
local first, best, gathers, ends = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
if not first or now > ends then -- of nobody, or of one that has died or stands still
  gathers = now + gather
  redis.call('HSET', repair, 'id', id, 'epoch', ARGV[2], 'revision', ARGV[3], 'gathers', int(gathers),
    'until', int(gathers + lasts), 'found', state[5] or epoch)
  redis.call('DEL', EPOCH)
  return {'wait', gather}
end
-- Who only found that a repair is under way, of a store that had all that it knows, has nothing to add.
if first ~= id and state[5] == ARGV[2] and head() >= revision then return {'wait', ends - now} end
if now < gathers then
  if revision > best or (revision == best and id > first) then
    redis.call('HSET', repair, 'id', id, 'epoch', ARGV[2], 'revision', ARGV[3])
  end
  return {'wait', gathers - now}
end
if first ~= id then return {'wait', math.max(ends - now, 0)} end
redis.call('HSET', repair, 'until', int(now + lasts))
return {'turn', state[5], head(), state[6] or ''}

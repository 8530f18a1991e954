-- Returns the epoch and the newest revision; starts a new epoch if the history cannot continue.
-- KEYS[12] repair
-- ARGV     1 name for a new epoch  2 epoch known to the caller, or ''  3 newest revision known to the caller
--          4 1 = the caller has found that revisions of this epoch now belong to other changes
-- Returns  {epoch, revision}; the epoch is empty while another process repairs the store
-- A store that is new or was emptied has no epoch. A store whose revision is lower than one known in the same epoch (an
-- older backup, a lagging replica) would assign, or has assigned, the same revisions to other changes: its history ends
-- here. The events are deleted with it, so that stream ids can start again. If several callers know the same epoch, the
-- first one ends it.
local repair = KEYS[12]
local epoch = redis.call('GET', EPOCH)
local revision = head()
if not epoch and tonumber(redis.call('HGET', repair, 'until') or '0') >= now_ms() then return {'', revision} end
if not epoch or (epoch == ARGV[2] and (revision < tonumber(ARGV[3]) or ARGV[4] == '1')) then
  epoch = ARGV[1]
  redis.call('SET', EPOCH, epoch)
  redis.call('DEL', EVENTS, repair) -- an abandoned repair belongs to the previous history
end
return {epoch, revision}

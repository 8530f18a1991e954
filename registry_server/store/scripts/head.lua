-- Tells the epoch and the newest revision; begins a new epoch where the old history cannot go on.
-- KEYS[12] repair
-- ARGV     1 name for a new epoch  2 epoch that the caller knows or ''  3 revision that the caller has seen in it
--          4 1 = the caller has seen that this epoch's numbers stand for other changes now
-- Gives    {epoch, revision}; no epoch while another process repairs the store
-- A store that is new or was emptied has no epoch. One whose revision is behind what was seen in the same epoch (an
-- older backup, a replica that lagged) would give the same numbers to other changes, or has done so already: its history
-- ends here, and its events with it, so that ids can start again. Of several callers that know the same epoch the first
-- one ends it.
local repair = KEYS[12]
local epoch = redis.call('GET', EPOCH)
local revision = head()
if not epoch and tonumber(redis.call('HGET', repair, 'until') or '0') >= now_ms() then return {'', revision} end
if not epoch or (epoch == ARGV[2] and (revision < tonumber(ARGV[3]) or ARGV[4] == '1')) then
  epoch = ARGV[1]
  redis.call('SET', EPOCH, epoch)
  redis.call('DEL', EVENTS, repair) -- a repair that was given up is of the history before
end
return {epoch, revision}

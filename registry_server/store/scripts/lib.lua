-- Shared by the scripts that change something; put in front of each of them when it is loaded.
-- Every script takes the same KEYS, so that a cluster can tell that they are in one slot:
local REVISION, EPOCH, RECORDS, LEASES, TTLS, EVENTS, CHECKS, SWEEP, BARE, OWNERS, OWNED =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local COMMON = 11

-- Milliseconds by the clock of Redis: the one clock that all processes share.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- The time from which a lease runs that begins now. If the clock was set back since the newest sweep, the next sweep
-- moves all leases by as much: one that begins in between begins where the others stand, and moves with them.
local function lease_begins(now)
  return math.max(now, tonumber(redis.call('GET', SWEEP) or '0'))
end

-- Integers above 2^31 would be written as 1.7e+12 without this.
local function int(n)
  return string.format('%.0f', n)
end

-- Both are read once by a script: nobody else changes them meanwhile.
local newest, epoch_now

local function head()
  newest = newest or tonumber(redis.call('GET', REVISION) or '0')
  return newest
end

local function current_epoch()
  epoch_now = epoch_now or redis.call('GET', EPOCH)
  return epoch_now
end

-- Whether the store goes on from where the caller stands: who has seen more of this history than is here now must not
-- give the same revisions to other changes.
local function goes_on_from(epoch, revision)
  return current_epoch() == epoch and head() >= tonumber(revision)
end

-- Appends the field `revision` (number 9, varint) to a serialised Service.
local function with_revision(record, revision)
  local out = '\72'
  while revision > 127 do
    out = out .. string.char(revision % 128 + 128)
    revision = math.floor(revision / 128)
  end
  return record .. out .. string.char(revision)
end

-- Reads that field back. All bytes of a varint but its last have the high bit set and the tag (72) has not: read from
-- the end, the field has one meaning only.
local function revision_of(record)
  local revision, i = string.byte(record, -1), #record - 1
  while string.byte(record, i) > 127 do
    revision = revision * 128 + string.byte(record, i) - 128
    i = i - 1
  end
  return revision
end

-- Adds the event of the next revision and makes it the newest. This is the first write of every change: if Redis is
-- out of memory it is refused here, before anything else is written. The owner is that after the change.
local function publish(maxlen, now, kind, reason, name, record, before, text, owner)
  local revision = head() + 1
  if record then record = with_revision(record, revision) end
  redis.call('XADD', EVENTS, 'MAXLEN', '~', maxlen, int(revision) .. '-0', 'e', current_epoch(), 'k', kind, 'r', reason,
    't', int(now), 'n', name, 's', record or '', 'b', before or '', 'x', text or '',
    'o', owner or '')
  redis.call('SET', REVISION, int(revision))
  newest = revision
  return revision, record
end

-- Has a document end with its lease. Redis may have dropped it already, while nobody swept or in the moment before a
-- late heartbeat: then it is noted, until a process writes it again.
local function expire_document(name, document, deadline)
  if redis.call('PEXPIREAT', document, deadline) == 0 then redis.call('SADD', BARE, name) end
end

-- Sets the end of a lease, for the service and for its document alike.
local function set_deadline(name, document, deadline)
  redis.call('ZADD', LEASES, deadline, name)
  expire_document(name, document, deadline)
end

-- Whether a service is somebody else's, who alone may change it.
local function is_of_another(name, owner)
  local current = redis.call('HGET', OWNERS, name)
  return current and current ~= owner
end

local function disown(name)
  local owner = redis.call('HGET', OWNERS, name)
  if not owner then return end
  redis.call('HDEL', OWNERS, name)
  if redis.call('HINCRBY', OWNED, owner, -1) <= 0 then redis.call('HDEL', OWNED, owner) end
end

local function forget(name, document)
  disown(name)
  redis.call('HDEL', RECORDS, name)
  redis.call('ZREM', LEASES, name)
  redis.call('HDEL', TTLS, name)
  redis.call('HDEL', CHECKS, name)
  redis.call('SREM', BARE, name)
  redis.call('DEL', document)
end

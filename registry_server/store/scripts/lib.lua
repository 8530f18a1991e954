-- Functions shared by the scripts; prepended to each of them when it is loaded.
-- A line has at most one redis.call, and starts it with the command and the key: an error is located by its line.
-- Every script receives the same first KEYS, so that a cluster can verify that all of them are in one slot:
local REVISION, EPOCH, RECORDS, LEASES, TTLS, EVENTS, CHECKS, SWEEP, BARE, OWNERS, OWNED =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local COMMON = 11

-- Milliseconds by the clock of Redis, the only clock that all processes share.
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- Start time of a new lease. If the clock was set back since the latest sweep, the next sweep shifts all deadlines by
-- the difference: a lease that starts in between starts at the time of that sweep, and is shifted with the others.
local function lease_start(now)
  return math.max(now, tonumber(redis.call('GET', SWEEP)) or 0)
end

-- Formats an integer; Lua would format one above 2^31 as 1.7e+12.
local function int(n)
  return string.format('%.0f', n)
end

-- Each is read once per script, because nothing else changes it while the script runs.
local cached_revision, cached_epoch

-- A revision that is missing or no number is 0: the store is then behind every process, and one of them repairs it.
local function head()
  cached_revision = cached_revision or tonumber(redis.call('GET', REVISION)) or 0
  return cached_revision
end

local function current_epoch()
  cached_epoch = cached_epoch or redis.call('GET', EPOCH)
  return cached_epoch
end

-- Returns whether the store continues the history that the caller has applied. A caller that is ahead of the store must
-- not assign the same revisions to other changes.
local function continues(epoch, revision)
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

-- Reads that field; returns 0 for a record without it, which is damaged and counts as missing. All bytes of a varint
-- except the last have the high bit set; the tag (72) does not. The field can therefore be read from the end.
local function revision_of(record)
  local revision, i = string.byte(record, -1) or 0, #record - 1
  while i > 0 and string.byte(record, i) > 127 do
    revision = revision * 128 + string.byte(record, i) - 128
    i = i - 1
  end
  return string.byte(record, i) == 72 and revision or 0
end

-- Appends an entry to the event stream; the reader expects these names of fields.
local function append_event(max_length, revision, epoch, event_type, reason, ms, name, after, before, error_text, owner)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', max_length, revision .. '-0', 'e', epoch, 'k', event_type, 'r', reason,
    't', ms, 'n', name, 's', after, 'b', before, 'x', error_text, 'o', owner)
end

-- Publishes the event of the next revision and increments the revision; returns it, and the record with it. This is the
-- first write of every change: if Redis is out of memory, it refuses this write, before anything else is written.
-- `owner` is the owner after the change.
local function publish(max_length, now, event_type, reason, name, record, before, error_text, owner)
  local revision = head() + 1
  if record then record = with_revision(record, revision) end
  append_event(max_length, int(revision), current_epoch(), event_type, reason, int(now), name, record or '',
    before or '', error_text or '', owner or '')
  redis.call('SET', REVISION, int(revision))
  cached_revision = revision
  return revision, record
end

-- Sets the expiry of a document to the end of its lease. If Redis has expired the document already, during an outage or
-- just before a late heartbeat, the name is recorded until a process writes the document again.
local function expire_document(name, document, deadline)
  if redis.call('PEXPIREAT', document, deadline) == 0 then
    redis.call('SADD', BARE, name)
  end
end

-- Sets the end of a lease, for the service and for its document.
local function set_deadline(name, document, deadline)
  redis.call('ZADD', LEASES, deadline, name)
  expire_document(name, document, deadline)
end

-- Returns whether a service has an owner other than `owner`.
local function has_other_owner(name, owner)
  local current = redis.call('HGET', OWNERS, name)
  return current and current ~= owner
end

-- Sets the owner of a service without one.
local function add_owner(name, owner)
  redis.call('HSET', OWNERS, name, owner)
  redis.call('HINCRBY', OWNED, owner, 1)
end

local function remove_owner(name)
  local owner = redis.call('HGET', OWNERS, name)
  if not owner then return end
  redis.call('HDEL', OWNERS, name)
  if redis.call('HINCRBY', OWNED, owner, -1) <= 0 then
    redis.call('HDEL', OWNED, owner)
  end
end

local function delete_service(name, document)
  remove_owner(name)
  redis.call('HDEL', RECORDS, name)
  redis.call('ZREM', LEASES, name)
  redis.call('HDEL', TTLS, name)
  redis.call('HDEL', CHECKS, name)
  redis.call('SREM', BARE, name)
  redis.call('DEL', document)
end

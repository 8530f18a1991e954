-- Verifies that the caller may run the commands of the registry on its keys, and that the keys have the right types.
-- KEYS[12] members  KEYS[13] repair  KEYS[14] merged  KEYS[15] secret
-- KEYS[16] format  KEYS[17] document of a service without a name  KEYS[18] loads
-- Returns  format of the data, empty for none; for each call that fails: command, key, error
-- Nothing changes. Redis checks permissions before arguments, so a write has arguments that Redis then rejects, or the
-- empty name, which no service has. The caller ignores errors about arguments.
local MEMBERS, REPAIR, MERGED, SECRET, FORMAT, DOCUMENT, LOADS =
  KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16], KEYS[17], KEYS[18]
local failures = {}

local function try(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    local key = command == 'XREAD' and EVENTS or select('#', ...) > 0 and select(1, ...) or ''
    failures[#failures + 1] = {command, key, answer.err}
  end
  return answer
end

try('TIME')
for _, key in ipairs({REVISION, SWEEP, FORMAT}) do
  local value = try('GET', key)
  if type(value) == 'string' and not string.match(value, '^%d+$') then
    failures[#failures + 1] = {'GET', key, 'DAMAGED the value is not a number'}
  end
end
for _, key in ipairs({REVISION, EPOCH, SWEEP, SECRET, FORMAT, DOCUMENT}) do
  try('GET', key)
  try('SET', key, '', 'rejected')
end
try('MGET', EPOCH, REVISION)
try('DEL', DOCUMENT)
try('PEXPIREAT', DOCUMENT, 'rejected')

for _, key in ipairs({RECORDS, TTLS, CHECKS, OWNERS, OWNED, REPAIR, MERGED}) do
  try('HGET', key, '')
  try('HSET', key, '', '', 'rejected')
  try('HDEL', key, '')
end
for _, key in ipairs({RECORDS, TTLS, OWNERS, OWNED}) do
  try('HLEN', key)
end
try('HSCAN', RECORDS, '0', 'COUNT', '1')
try('HMGET', TTLS, '')
try('HEXISTS', OWNERS, '')
try('HINCRBY', OWNED, '', 'rejected')
try('HGETALL', REPAIR) -- a small hash; the registry reads OWNERS with this command and the next
try('HVALS', REPAIR)

for _, key in ipairs({LEASES, MEMBERS}) do
  try('ZCARD', key)
  try('ZSCORE', key, '')
  try('ZADD', key, 'rejected', '')
  try('ZREM', key, '')
end
try('ZRANGEBYSCORE', LEASES, '(+inf', '+inf', 'LIMIT', '0', '1')
try('ZCOUNT', LEASES, '(+inf', '+inf')
try('ZRANGE', MEMBERS, '0', '0')
try('ZREMRANGEBYSCORE', MEMBERS, 'rejected', 'rejected')

try('XREAD', 'STREAMS', EVENTS, '$')
for _, key in ipairs({EVENTS, LOADS}) do
  try('XRANGE', key, '+', '+')
  try('XADD', key, 'rejected', '', '')
end
try('XREVRANGE', EVENTS, '-', '-')

try('SRANDMEMBER', BARE)
local removed = try('SREM', BARE, '')
if type(removed) == 'number' then
  try('SADD', BARE, '') -- it has no argument that Redis rejects
  redis.pcall('SREM', BARE, '')
end
local format = redis.pcall('GET', FORMAT)
return {type(format) == 'string' and format or '', failures}

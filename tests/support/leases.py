"""Time that passes for leases without waiting for it."""

from redis.asyncio import Redis

from registry_server.store.keys import Keys

_SCRIPT = """
local ms = tonumber(ARGV[1])
local leases = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES')
for i = 1, #leases, 2 do redis.call('ZADD', KEYS[1], leases[i + 1] - ms, leases[i]) end
local swept = redis.call('GET', KEYS[2])
if swept then redis.call('SET', KEYS[2], string.format('%.0f', swept - ms)) end
for _, document in ipairs(redis.call('KEYS', ARGV[2] .. '*')) do
  local left = redis.call('PTTL', document)
  if left >= 0 and left <= ms then redis.call('DEL', document) end
  if left > ms then redis.call('PEXPIRE', document, left - ms) end
end
"""


async def pass_time(client: Redis, seconds: float) -> None:
    """Change Redis as if ``seconds`` had passed without a sweep: move deadlines and the latest sweep into the past.

    Documents whose deadline has passed are deleted, as Redis does. Stop or kill what sweeps next.
    """
    keys = Keys.under("ossa:services")
    arguments = (round(seconds * 1000), keys.document_prefix)
    await client.eval(_SCRIPT, 2, keys.leases, keys.sweep, *arguments)  # type: ignore[misc]

"""Expiry of leases without waiting: shifts the times that Redis stores."""

from typing import Any

from redis.asyncio import Redis

from registry_server.store.keys import Keys

_SCRIPT = """
local ms = tonumber(ARGV[1])
local leases = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES')
for i = 1, #leases, 2 do redis.call('ZADD', KEYS[1], leases[i + 1] - ms, leases[i]) end
local swept = redis.call('GET', KEYS[2])
if swept then redis.call('SET', KEYS[2], string.format('%.0f', swept - ms)) end
for _, document in ipairs(redis.call('KEYS', ARGV[2] .. '*')) do
  local remaining = redis.call('PTTL', document)
  if remaining >= 0 and remaining <= ms then redis.call('DEL', document) end
  if remaining > ms then redis.call('PEXPIRE', document, remaining - ms) end
end
"""


async def pass_time(client: Redis, seconds: float) -> None:
    """Change Redis as if ``seconds`` had passed without a sweep: move deadlines and the latest sweep into the past.

    Documents whose deadline has passed are deleted, as Redis does. First stop or kill every server that sweeps leases.
    """
    keys = Keys.under("ossa:services")
    arguments = (round(seconds * 1000), keys.document_prefix)
    evaluation: Any = client.eval(_SCRIPT, 2, keys.leases, keys.sweep, *arguments)  # its type depends on the version
    await evaluation

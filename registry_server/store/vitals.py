"""``Vitals``: memory and persistence of Redis, as ``INFO`` reports them, for metrics and as problems."""

from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import Redis

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.problems import Problems
from registry_server.store.counters import RedisMemory, StoreCounters
from registry_server.store.failures import translate_errors

_POLICY, _PERSISTENCE, _INFO = "store_maxmemory_policy", "store_persistence", "store_info"
_WRITE_STATUSES: Final = ("aof_last_write_status", "rdb_last_bgsave_status")
_STATUSES: Final = (*_WRITE_STATUSES, "aof_last_bgrewrite_status")


class Vitals:
    """Samples ``INFO``, and reports the conditions in which Redis may lose services or refuses writes."""

    def __init__(self, client: Redis, counters: StoreCounters, problems: Problems, disk: str) -> None:
        """Create it without connecting.

        Args:
            client: Client of the primary.
            counters: Receives the values for the metrics.
            problems: Problems of the process.
            disk: The disk that Redis writes to, for people.
        """
        self._client = client
        self._counters = counters
        self._problems = problems
        self._disk = disk

    async def sample(self) -> None:
        """Read the values once. While Redis does not answer, there are none, and the problems remain."""
        try:
            with translate_errors("INFO"):
                info = {**await self._client.info("memory"), **await self._client.info("persistence")}
        except StoreUnavailable as error:
            self._counters.memory = None
            if error.fault is not None and not error.fault.temporary:
                text = f"{error.fault}: the memory and the disk of Redis are not monitored"
                self._problems.report(_INFO, text)
            return
        self._counters.memory = RedisMemory(
            int(info.get("used_memory", 0)),
            int(info.get("maxmemory", 0)),
            persistence_ok=all(info.get(status, "ok") == "ok" for status in _WRITE_STATUSES),
        )
        self._problems.resolve(_INFO)
        for key, text in ((_POLICY, _policy_problem(info)), (_PERSISTENCE, self._persistence_problem(info))):
            if text:
                self._problems.report(key, text)
            else:
                self._problems.resolve(key)

    def _persistence_problem(self, info: Mapping[str, Any]) -> str:
        failed = ", ".join(f"{status} is {info[status]}" for status in _STATUSES if info.get(status, "ok") != "ok")
        if not failed:
            return ""
        return f"Redis cannot save its data ({failed}) and may refuse writes until it can: free space on {self._disk}"


def _policy_problem(info: Mapping[str, Any]) -> str:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return ""
    return f"maxmemory-policy is {policy}: Redis removes services when its memory is full; set it to noeviction"

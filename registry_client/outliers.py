"""Ejection of services whose calls fail from endpoint selection, until the registry notices, or they recover.

As in Envoy's outlier detection and gRPC's proposal A50, a service is ejected after a number of consecutive failures,
for longer each time.
"""

import time
from collections.abc import Callable, Collection
from typing import Final

FAILURES_TO_EJECT: Final = 3
"""Consecutive failures after which a service is ejected; after that, each further one ejects it again."""
EJECTION_SECONDS: Final = 30.0
"""Duration of the first ejection; the second takes twice as long, the third three times."""
MAX_EJECTION_SECONDS: Final = 300.0


class Outliers:
    """Failures of calls by service. Not thread-safe, apart from reading ``ejected``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, int] = {}
        """Consecutive failures of each service that failed at its last call."""
        self._until: dict[str, float] = {}
        """End of the ejection of each ejected service."""

    @property
    def ejected(self) -> Collection[str]:
        """Names of the ejected services."""
        return self._until.keys()

    def record(self, name: str, *, failed: bool) -> bool:
        """Record the result of a call; return whether it ejects the service or ends its ejection."""
        if not failed:
            self._failures.pop(name, None)
            return self._until.pop(name, None) is not None
        if name in self._until:
            return False  # a call that began before the ejection
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        if failures < FAILURES_TO_EJECT:
            return False
        seconds = EJECTION_SECONDS * (failures - FAILURES_TO_EJECT + 1)
        self._until[name] = self._clock() + min(seconds, MAX_EJECTION_SECONDS)
        return True

    def readmit_due(self) -> list[str]:
        """End the ejections whose time has passed; return the names."""
        now = self._clock()
        due = [name for name, until in self._until.items() if until <= now]
        for name in due:
            del self._until[name]
        return due

    def discard(self, name: str) -> None:
        """Remove the state of a service."""
        self._failures.pop(name, None)
        self._until.pop(name, None)


def max_ejected(services: int) -> int:
    """Return how many of a number of services may be ejected: half of them, rounded up, but not the last one.

    If most calls fail, the cause is rather the caller or the network, and the remaining services would be overloaded.
    """
    return min(services - 1, (services + 1) // 2)

"""``StoreCounters``: what a store counts."""

from collections import Counter
from typing import Literal, NamedTuple

from registry_server.instrumentation.counters import CallCounters
from registry_server.store.lua import NAMES

CommitOutcome = Literal["committed", "conflict", "epoch_changed", "refused", "failed"]
Expiry = Literal["lease_expired", "cleanup"]


class PoolStats(NamedTuple):
    """Connections of one client of Redis."""

    in_use: int
    idle: int
    most: int
    """How many there may be."""


class Memory(NamedTuple):
    """What Redis tells of itself."""

    used: int
    """Bytes."""
    most: int
    """Bytes that it may take; 0 = no bound."""
    saves: bool
    """Whether the newest attempt to write to its disk succeeded, or there was none."""


class StoreCounters:
    """Calls of Redis, and what came of them; all since the process started."""

    def __init__(self) -> None:
        self.scripts = {name: CallCounters() for name in NAMES}
        """By script; they end "ok" or "failed". From the moment that a script is wanted: it may wait for its turn."""
        self.commits: Counter[CommitOutcome] = Counter()
        self.renewed = 0
        """Leases that heartbeats renewed."""
        self.unknown = 0
        """Heartbeats of services that were not registered."""
        self.expired: Counter[Expiry] = Counter()
        """Services that this process removed since their lease had run out."""
        self.leases: int | None = None
        """Services with a lease that ends, as of the newest sweep; ``None`` before the first."""
        self.memory: Memory | None = None
        """As of the newest look; ``None`` before the first, and if Redis does not tell."""

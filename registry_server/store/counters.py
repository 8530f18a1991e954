"""``StoreCounters``: counters of scripts, commits and leases, read at scrape time."""

from collections import Counter
from typing import Final, Literal, NamedTuple, get_args

from registry_server.instrumentation.counters import CallCounters
from registry_server.store.lua import SCRIPT_NAMES

CommitOutcome = Literal["committed", "conflict", "epoch_changed", "refused", "failed"]
COMMIT_OUTCOMES: Final[tuple[CommitOutcome, ...]] = get_args(CommitOutcome)
Expiry = Literal["lease_expired", "cleanup"]
EXPIRIES: Final[tuple[Expiry, ...]] = get_args(Expiry)


class PoolStats(NamedTuple):
    """Connections of one Redis client."""

    in_use: int
    idle: int
    max_connections: int


class RedisMemory(NamedTuple):
    """Memory and persistence status that Redis reports."""

    used_bytes: int
    max_bytes: int
    """Value of ``maxmemory``; 0 = no limit."""
    persistence_ok: bool
    """Whether the latest write to disk succeeded; true if there was none."""


class StoreCounters:
    """Script calls and their outcomes since the process started."""

    def __init__(self) -> None:
        self.scripts = {name: CallCounters() for name in SCRIPT_NAMES}
        """By script; outcomes are "ok" and "failed". Durations include the wait for a round trip."""
        self.commits: Counter[CommitOutcome] = Counter()
        self.renewed_leases = 0
        """Leases renewed by heartbeats."""
        self.unknown_leases = 0
        """Heartbeats for services that were not registered."""
        self.superseded_leases = 0
        """Heartbeats of instances whose name was taken over."""
        self.takeovers = 0
        """Registrations that gave a name to another instance."""
        self.expired_services: Counter[Expiry] = Counter()
        """Services that this process removed after their leases expired."""
        self.active_leases: int | None = None
        """Services that are not permanent, as of the latest sweep; ``None`` before the first."""
        self.memory: RedisMemory | None = None
        """As of the latest sample; ``None`` before the first, or if Redis does not permit INFO."""

"""The registry's data in Redis; the only package that talks to Redis."""

from registry_server.store.counters import COMMIT_OUTCOMES, EXPIRIES, PoolStats, StoreCounters
from registry_server.store.groups import MAX_COMMITS_PER_GROUP
from registry_server.store.limits import StoreLimits
from registry_server.store.reader import StoreReader
from registry_server.store.redis_store import RedisStore
from registry_server.store.repairs import Repairs, RestoredService, Turn, TurnLost
from registry_server.store.tls import RedisTls
from registry_server.store.values import (
    FORGET_CHECK,
    KEEP_CHECK,
    CheckChange,
    Conflict,
    DamagedEvent,
    EpochChanged,
    Position,
    ProbeResult,
    StoredEvent,
    StoreSizes,
    SweepResult,
)
from registry_server.store.writer import StoreWriter

__all__ = [
    "COMMIT_OUTCOMES",
    "EXPIRIES",
    "FORGET_CHECK",
    "KEEP_CHECK",
    "MAX_COMMITS_PER_GROUP",
    "CheckChange",
    "Conflict",
    "DamagedEvent",
    "EpochChanged",
    "PoolStats",
    "Position",
    "ProbeResult",
    "RedisStore",
    "RedisTls",
    "Repairs",
    "RestoredService",
    "StoreCounters",
    "StoreLimits",
    "StoreReader",
    "StoreSizes",
    "StoreWriter",
    "StoredEvent",
    "SweepResult",
    "Turn",
    "TurnLost",
]

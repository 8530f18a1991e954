"""The only place that talks to Redis."""

from registry_server.store.counters import PoolStats, StoreCounters
from registry_server.store.groups import LARGEST_GROUP
from registry_server.store.limits import StoreLimits
from registry_server.store.redis_store import RedisStore
from registry_server.store.repairs import Remembered, Repairs, Turn, TurnLost
from registry_server.store.tls import RedisTls
from registry_server.store.values import Conflict, EpochChanged, Position, ProbeResult, StoredEvent, Sweep

__all__ = [
    "LARGEST_GROUP",
    "Conflict",
    "EpochChanged",
    "PoolStats",
    "Position",
    "ProbeResult",
    "RedisStore",
    "RedisTls",
    "Remembered",
    "Repairs",
    "StoreCounters",
    "StoreLimits",
    "StoredEvent",
    "Sweep",
    "Turn",
    "TurnLost",
]

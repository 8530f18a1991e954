"""The only place that talks to Redis."""

from registry_server.store.redis_store import RedisStore
from registry_server.store.tls import RedisTls
from registry_server.store.values import Conflict, EpochChanged, Position, ProbeResult, StoredEvent, Sweep

__all__ = ["Conflict", "EpochChanged", "Position", "ProbeResult", "RedisStore", "RedisTls", "StoredEvent", "Sweep"]

"""``Parts``: everything below the transports that runs in one process; ``app.py`` builds it."""

import asyncio
from typing import NamedTuple

from registry_server.catalog import Discovery, Loads, Replica
from registry_server.health import HealthMonitor
from registry_server.instrumentation.problems import Problems
from registry_server.instrumentation.samples import Samples
from registry_server.instrumentation.tracing import Tracer
from registry_server.registry import ServiceRegistry
from registry_server.replication import Follower, Reconciler, Writes
from registry_server.store import RedisStore
from registry_server.watch import WatchHub


class Parts(NamedTuple):
    """The parts that run in one process."""

    registry: ServiceRegistry
    hub: WatchHub
    follower: Follower
    reconciler: Reconciler
    monitor: HealthMonitor
    store: RedisStore
    discovery: Discovery
    replica: Replica
    loads: Loads
    writes: Writes
    samples: Samples
    tracer: Tracer | None
    problems: Problems
    """Conditions that an operator must correct."""
    loaded: asyncio.Event
    """Set once the catalog holds the state of the store."""

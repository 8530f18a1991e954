"""Agreement of this process with the store: writes, the follower of the event stream, and repair after data loss."""

from registry_server.replication.follower import FOLLOWER_STATES, Follower
from registry_server.replication.reconcile import Reconciler
from registry_server.replication.repair import REPAIR_OUTCOMES, Repairer
from registry_server.replication.writes import REPLICA_WAIT_SECONDS, Writes, require_existing

__all__ = [
    "FOLLOWER_STATES",
    "REPAIR_OUTCOMES",
    "REPLICA_WAIT_SECONDS",
    "Follower",
    "Reconciler",
    "Repairer",
    "Writes",
    "require_existing",
]

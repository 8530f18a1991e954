"""The copy in memory: what every read is answered from, and what every watcher is told."""

from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.follower import Follower
from registry_server.catalog.repair import Repairer
from registry_server.catalog.replica import Replica
from registry_server.catalog.statistics import Capabilities, stats
from registry_server.catalog.watch import Watcher, WatchHub, fits_one_message

__all__ = [
    "Capabilities",
    "Change",
    "Discovery",
    "Follower",
    "Repairer",
    "Replica",
    "WatchHub",
    "Watcher",
    "fits_one_message",
    "stats",
]

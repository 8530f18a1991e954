"""Watches: every change that matches a filter, delivered to each watcher in revision order."""

from registry_server.watch.hub import WatchHub
from registry_server.watch.messages import EventBatch, WatchLimits
from registry_server.watch.watcher import CLIENT_LEFT, WATCH_ENDS, WATCH_STARTS, WatchCounters, Watcher

__all__ = [
    "CLIENT_LEFT",
    "WATCH_ENDS",
    "WATCH_STARTS",
    "EventBatch",
    "WatchCounters",
    "WatchHub",
    "WatchLimits",
    "Watcher",
]

"""The in-memory copy of the registry, which serves every read: records, index, queries, history and statistics."""

from registry_server.catalog.budgets import ChangeBudgets
from registry_server.catalog.change import Change, WatchEvent
from registry_server.catalog.discovery import Discovery, PageKey
from registry_server.catalog.explain import Explanations
from registry_server.catalog.loads import Loads
from registry_server.catalog.query import Compressed, Page
from registry_server.catalog.replica import Replica
from registry_server.catalog.search import Hit, Hits, Search
from registry_server.catalog.slices import Slices
from registry_server.catalog.statistics import Capabilities, Statistics, registry_stats

__all__ = [
    "Capabilities",
    "Change",
    "ChangeBudgets",
    "Compressed",
    "Discovery",
    "Explanations",
    "Hit",
    "Hits",
    "Loads",
    "Page",
    "PageKey",
    "Replica",
    "Search",
    "Slices",
    "Statistics",
    "WatchEvent",
    "registry_stats",
]

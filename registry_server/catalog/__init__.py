"""The copy in memory that answers every read: records, indexes, queries, history and statistics."""

from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.catalog.statistics import Capabilities, stats

__all__ = ["Capabilities", "Change", "Discovery", "Replica", "stats"]

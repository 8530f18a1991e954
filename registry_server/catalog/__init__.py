"""The in-memory copy of the registry, which serves every read: records, index, queries, history and statistics."""

from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.catalog.statistics import Capabilities, registry_stats

__all__ = ["Capabilities", "Change", "Discovery", "Replica", "registry_stats"]

"""Health checks: lease expiry, and probes of each service by the process that it is assigned to."""

from registry_server.health.counters import ProbeCounters
from registry_server.health.evaluator import HealthEvaluator
from registry_server.health.leases import LeaseSweeper
from registry_server.health.maintenance import Maintenance
from registry_server.health.members import Membership
from registry_server.health.monitor import HealthMonitor
from registry_server.health.reports import HealthReports, NewestHealth
from registry_server.health.results import ResultWriter
from registry_server.health.self_preservation import SelfPreservation

__all__ = [
    "HealthEvaluator",
    "HealthMonitor",
    "HealthReports",
    "LeaseSweeper",
    "Maintenance",
    "Membership",
    "NewestHealth",
    "ProbeCounters",
    "ResultWriter",
    "SelfPreservation",
]

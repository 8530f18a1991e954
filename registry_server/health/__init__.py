"""Health: leases that run out, and probes of services that answer, by the process whose turn it is."""

from registry_server.health.figures import LATENESS_BOUNDS, Figures
from registry_server.health.judge import Judge
from registry_server.health.leases import LeaseSweeper
from registry_server.health.members import Membership
from registry_server.health.monitor import HealthMonitor
from registry_server.health.protection import Protection
from registry_server.health.reports import HealthReports
from registry_server.health.results import ResultWriter

__all__ = [
    "LATENESS_BOUNDS",
    "Figures",
    "HealthMonitor",
    "HealthReports",
    "Judge",
    "LeaseSweeper",
    "Membership",
    "Protection",
    "ResultWriter",
]

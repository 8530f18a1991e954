"""Probes: one question to a service, answered within a bounded time, whatever is at the other end."""

from registry_server.health.probes.outcome import Outcome, OutcomeKind
from registry_server.health.probes.plan import Plan
from registry_server.health.probes.prober import Prober
from registry_server.health.probes.process import ProbeProcess, Result

__all__ = ["Outcome", "OutcomeKind", "Plan", "ProbeProcess", "Prober", "Result"]

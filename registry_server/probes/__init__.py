"""Probes: one request to a service within a time limit, their schedule, and the process that sends them."""

from registry_server.probes.outcome import Outcome, OutcomeKind
from registry_server.probes.pause_detector import PauseDetector
from registry_server.probes.plan import Plan
from registry_server.probes.prober import Prober
from registry_server.probes.process import ProbeProcess, Result
from registry_server.probes.rounds import Rounds, jitter
from registry_server.security.egress import EgressPolicy

__all__ = [
    "EgressPolicy",
    "Outcome",
    "OutcomeKind",
    "PauseDetector",
    "Plan",
    "ProbeProcess",
    "Prober",
    "Result",
    "Rounds",
    "jitter",
]

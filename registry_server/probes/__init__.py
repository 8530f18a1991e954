"""Probes: one request to a service within a time limit, their schedule, and the process that sends them."""

from registry_server.probes.messages import WorkerSetup
from registry_server.probes.outcome import Outcome, OutcomeKind
from registry_server.probes.pause_detector import PauseDetector
from registry_server.probes.plan import Plan
from registry_server.probes.process import ProbeProcess, Result
from registry_server.probes.rounds import jitter

__all__ = [
    "Outcome",
    "OutcomeKind",
    "PauseDetector",
    "Plan",
    "ProbeProcess",
    "Result",
    "WorkerSetup",
    "jitter",
]

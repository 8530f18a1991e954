"""Messages between the registry and its probe process, in frames.

The registry sends pickles, first a ``WorkerSetup``, then ``WorkerCommands``. The worker, which has parsed untrusted
input, sends JSON: lists of answers, of which the first is empty and reports that the worker is ready. An answer is the
number of its request, outcome kind, response time, error, details, start of the probe and its lateness (null for a
probe on demand).
"""

from typing import NamedTuple

from registry_server.model.networks import Network
from registry_server.probes.plan import Plan


class WorkerSetup(NamedTuple):
    """The first message to a worker: its configuration. Loading ``Settings`` would delay its start by half a second."""

    allowed: tuple[Network, ...]
    denied: tuple[Network, ...]
    concurrency: int
    """Maximum number of concurrent due probes."""
    level: str
    """Minimum level of log lines."""
    format: str
    """Format of log lines."""


class WorkerCommands(NamedTuple):
    """Commands to a worker. The number of a service or of a probe on demand is never used again."""

    assign: list[tuple[int, Plan, float]]
    """Services to probe periodically, with the due time of the first probe in monotonic seconds, valid machine-wide."""
    drop: list[int]
    """Services to stop probing."""
    once: list[tuple[int, Plan]]
    """Probes to send now."""
    cancel: list[int]
    """Probes on demand whose result no caller waits for."""

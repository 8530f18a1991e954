"""Framed messages between supervisor and workers: first a pickled ``Setup``, then JSON objects both ways."""

from typing import Any, Final, NamedTuple

from registry_server.config import Settings


class Setup(NamedTuple):
    """First frame from the supervisor: the worker's configuration."""

    number: int
    """Number of the worker, counted from 1."""
    settings: Settings


Message = dict[str, Any]
"""``{"kind": one of the kinds below, ...}``."""

# From worker to supervisor.
READY: Final = "ready"
"""The worker accepts calls and its catalog is loaded."""
ALIVE: Final = "alive"
"""Sent every second, so that the supervisor can detect a worker that hangs."""
CONFIGURATION_ERROR: Final = "configuration_error"
"""The worker cannot serve with its settings; ``error`` is the message."""
METRICS: Final = "metrics"
"""Answer to ``COLLECT_METRICS``: its ``id``, and the worker's metrics as ``text``."""
GET_ALL_METRICS: Final = "get_all_metrics"
"""Request for the metrics of all workers; the answer repeats ``id``."""

# From supervisor to worker.
COLLECT_METRICS: Final = "collect_metrics"
"""Request for the metrics of this worker; the answer repeats ``id``."""
ALL_METRICS: Final = "all_metrics"
"""Answer to ``GET_ALL_METRICS``: its ``id``, and ``texts`` with the metrics of the workers that answered in time."""

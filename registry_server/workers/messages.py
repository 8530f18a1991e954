"""Messages between supervisor and worker: first a pickled ``Setup``, then JSON arrays both ways.

An array holds one of the kinds below and the values that its comment names.
"""

from typing import Final, NamedTuple

from registry_server.config import Settings


class Setup(NamedTuple):
    """First message from the supervisor: the worker's configuration."""

    number: int
    """Number of the worker, counted from 1."""
    settings: Settings


READY: Final = "ready"
"""From the worker: it accepts calls and its catalog is loaded."""
CONFIGURATION_ERROR: Final = "configuration_error"
"""From the worker: it cannot serve with its settings, and the message of the error. It then exits with code 2."""
EXIT_CONFIGURATION_ERROR: Final = 2
GET_METRICS: Final = "get_metrics"
"""A number for the answer. The supervisor asks for the metrics of the worker, the worker for those of all workers."""
METRICS: Final = "metrics"
"""Answer: the number, and the text of the worker or a list with those of all workers that answered in time."""

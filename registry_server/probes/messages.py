"""What the registry and its probe process say to each other, in frames.

Down go pickles, which we made: ``Setup``, then ``Orders``. Up comes JSON, since the worker has read what strangers
sent: lists of answers, the first of them empty, which says that the worker is ready. An answer is the number that it
was asked by, kind, response time, error, details, when the probe began and how late that was (null if it was not due).
"""

from typing import NamedTuple

from registry_server.model.networks import Network
from registry_server.probes.plan import Plan


class Logs(NamedTuple):
    """How a worker logs; see ``LogSettings``."""

    level: str
    format: str
    audit: str = "off"
    """It changes nothing."""


class Setup(NamedTuple):
    """The first frame down: what a worker has to know."""

    allowed: tuple[Network, ...]
    denied: tuple[Network, ...]
    concurrency: int
    """Most probes under way at once of those that are due."""
    logs: Logs


class Orders(NamedTuple):
    """What a worker shall do; each number means one thing for as long as it lives."""

    assign: list[tuple[int, Plan, float]]
    """To probe once an interval, with the monotonic second at which the first is due: one clock serves a machine."""
    drop: list[int]
    """Of these, no longer."""
    once: list[tuple[int, Plan]]
    """To probe now."""

"""``ProbeCounters``: what a monitor counts."""

from collections import Counter
from typing import Final

from registry_server.instrumentation.counters import Histogram
from registry_server.probes import Outcome, OutcomeKind

LATENESS_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes in which lateness is counted, in seconds."""
_LATE: Final = 1.0


class ProbeCounters:
    """Probes by outcome, and how late they began; all since the process started."""

    def __init__(self) -> None:
        self.outcomes: Counter[OutcomeKind] = Counter()
        self.late = 0
        """Probes that began more than a second after they were due."""
        self.lateness = Histogram(LATENESS_BOUNDS)
        """Seconds."""

    def ended(self, outcome: Outcome, late: float | None = None) -> None:
        """Counts a result.

        Args:
            outcome: What it is.
            late: How many seconds after it was due the probe began; ``None`` if it was not due.
        """
        self.outcomes[outcome.kind] += 1
        if late is not None:
            self.late += late > _LATE
            self.lateness.observe(late)

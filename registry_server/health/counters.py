"""``ProbeCounters``: counts the probes of a health monitor."""

from collections import Counter
from typing import Final

from registry_server.instrumentation.counters import Histogram
from registry_server.probes import Outcome, OutcomeKind

LATENESS_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the lateness histogram, in seconds."""
_LATE_SECONDS: Final = 1.0
"""Lateness above which a probe counts as late."""


class ProbeCounters:
    """Probes since the process started, by outcome and by lateness."""

    def __init__(self) -> None:
        self.outcomes: Counter[OutcomeKind] = Counter()
        self.late = 0
        """Number of probes that started more than a second after they were due."""
        self.lateness = Histogram(LATENESS_BOUNDS)

    def count_probe(self, outcome: Outcome, lateness: float | None = None) -> None:
        """Count a finished probe.

        Args:
            outcome: Its result.
            lateness: Seconds between its due time and its start; ``None`` for a probe on demand.
        """
        self.outcomes[outcome.kind] += 1
        if lateness is not None:
            self.late += lateness > _LATE_SECONDS
            self.lateness.observe(lateness)

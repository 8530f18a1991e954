"""``Streak``: when the results of probes make a status, after the seed's thresholds."""

from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.probes import OutcomeKind

_HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
_UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
_DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
_UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN

_VERDICTS = {OutcomeKind.OK: _HEALTHY, OutcomeKind.DEGRADED: _DEGRADED, OutcomeKind.FAILED: _UNHEALTHY}


class Streak:
    """How the last probes of one service went.

    The first result decides from UNKNOWN. From then on a service is UNHEALTHY after ``failure_threshold`` failures in a
    row, and up again after ``success_threshold`` successes in a row, DEGRADED ones counting as successes. Between
    HEALTHY and DEGRADED the same two numbers hold: so many in a row for the worse, so many for the better.
    """

    __slots__ = ("count", "failures", "kind", "successes")

    def __init__(self) -> None:
        self.kind: OutcomeKind | None = None
        self.count = 0
        """Results of the newest kind in a row."""
        self.failures = 0
        self.successes = 0

    def add(self, kind: OutcomeKind) -> None:
        """Takes the result of a probe."""
        self.count = self.count + 1 if kind is self.kind else 1
        self.kind = kind
        if kind is OutcomeKind.FAILED:
            self.failures += 1
            self.successes = 0
        else:
            self.successes += 1
            self.failures = 0

    def verdict(
        self, status: HealthStatus.ValueType, failure_threshold: int, success_threshold: int
    ) -> HealthStatus.ValueType:
        """The status that the results so far make of the current one; MAINTENANCE stays."""
        if self.kind is None or status == HealthStatus.HEALTH_STATUS_MAINTENANCE:
            return status
        wanted = _VERDICTS[self.kind]
        if status in (wanted, _UNKNOWN):
            return wanted
        if wanted == _UNHEALTHY:
            return wanted if self.failures >= failure_threshold else status
        if status == _UNHEALTHY:
            return wanted if self.successes >= success_threshold else status
        needed = failure_threshold if wanted == _DEGRADED else success_threshold
        return wanted if self.count >= needed else status

"""``Streak``: derives a status from consecutive probe results, as the OSSA reference implementation does."""

from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.probes import OutcomeKind

_HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
_UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
_DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
_UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN

_STATUS_OF = {OutcomeKind.OK: _HEALTHY, OutcomeKind.DEGRADED: _DEGRADED, OutcomeKind.FAILED: _UNHEALTHY}


class Streak:
    """The latest consecutive results of one service.

    The first result replaces UNKNOWN. After that, a service becomes UNHEALTHY after ``failure_threshold`` consecutive
    failures, and recovers after ``success_threshold`` consecutive successes; DEGRADED results count as successes.
    Changes from HEALTHY to DEGRADED need ``failure_threshold`` DEGRADED results, changes from DEGRADED to HEALTHY need
    ``success_threshold`` OK results, each consecutive.
    """

    __slots__ = ("count", "failures", "kind", "observed", "successes")

    def __init__(self) -> None:
        self.kind: OutcomeKind | None = None
        self.count = 0
        """Consecutive results of the newest kind."""
        self.failures = 0
        self.successes = 0
        self.observed: HealthStatus.ValueType | None = None
        """Status that the latest result of this process led to during a maintenance, if there was one."""

    def restart_if_reported(self, status: HealthStatus.ValueType) -> None:
        """Forget all results but the newest if the status observed during a maintenance comes from a report."""
        if self.observed is not None and self.observed != status and self.kind is not None:
            kind, self.kind = self.kind, None
            self.failures = self.successes = 0
            self.add_outcome(kind)

    def add_outcome(self, kind: OutcomeKind) -> None:
        """Add the result of a probe."""
        self.count = self.count + 1 if kind is self.kind else 1
        self.kind = kind
        if kind is OutcomeKind.FAILED:
            self.failures += 1
            self.successes = 0
        else:
            self.successes += 1
            self.failures = 0

    def next_status(
        self, status: HealthStatus.ValueType, failure_threshold: int, success_threshold: int
    ) -> HealthStatus.ValueType:
        """Return the status after the results so far, given the current one. MAINTENANCE never changes."""
        if self.kind is None or status == HealthStatus.HEALTH_STATUS_MAINTENANCE:
            return status
        target = _STATUS_OF[self.kind]
        if status in (target, _UNKNOWN):
            return target
        if target == _UNHEALTHY:
            return target if self.failures >= failure_threshold else status
        if status == _UNHEALTHY:
            return target if self.successes >= success_threshold else status
        needed = failure_threshold if target == _DEGRADED else success_threshold
        return target if self.count >= needed else status

import pytest

from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.health.thresholds import Streak
from registry_server.probes import OutcomeKind

KINDS = {"o": OutcomeKind.OK, "d": OutcomeKind.DEGRADED, "x": OutcomeKind.FAILED}
STATUSES = {
    "H": HealthStatus.HEALTH_STATUS_HEALTHY,
    "U": HealthStatus.HEALTH_STATUS_UNHEALTHY,
    "D": HealthStatus.HEALTH_STATUS_DEGRADED,
    "?": HealthStatus.HEALTH_STATUS_UNKNOWN,
    "M": HealthStatus.HEALTH_STATUS_MAINTENANCE,
}


@pytest.mark.parametrize(
    ("initial", "results", "statuses"),
    [
        pytest.param("?", "o", "H", id="the first result replaces unknown: healthy"),
        pytest.param("?", "x", "U", id="the first result replaces unknown: unhealthy"),
        pytest.param("?", "d", "D", id="the first result replaces unknown: degraded"),
        pytest.param("H", "xxx", "HHU", id="unhealthy after exactly three failures"),
        pytest.param("H", "xxoxxoxx", "HHHHHHHH", id="flapping below the threshold changes nothing"),
        pytest.param("U", "oo", "UH", id="healthy after exactly two successes"),
        pytest.param("U", "oxoxo", "UUUUU", id="a failure resets the count of successes"),
        pytest.param("U", "dd", "UD", id="degraded results count as successes"),
        pytest.param("U", "od", "UD", id="the newest success determines the status"),
        pytest.param("H", "ddd", "HHD", id="degraded after three slow answers"),
        pytest.param("H", "ddoddo", "HHHHHH", id="healthy with occasional slow answers"),
        pytest.param("D", "oo", "DH", id="healthy after two fast answers"),
        pytest.param("D", "xdxdx", "DDDDD", id="degraded and flapping stays degraded"),
        pytest.param("D", "xxx", "DDU", id="degraded to unhealthy"),
        pytest.param("M", "xxxxooood", "MMMMMMMMM", id="maintenance never changes"),
    ],
)
def test_statuses_follow_consecutive_results(initial: str, results: str, statuses: str) -> None:
    streak, status, seen = Streak(), STATUSES[initial], ""
    for result in results:
        streak.add_outcome(KINDS[result])
        status = streak.next_status(status, failure_threshold=3, success_threshold=2)
        seen += next(letter for letter, value in STATUSES.items() if value == status)
    assert seen == statuses


def test_status_does_not_change_without_a_result() -> None:
    assert Streak().next_status(STATUSES["?"], 3, 2) == STATUSES["?"]


def test_report_during_maintenance_starts_the_counts_again() -> None:
    streak = Streak()
    for _ in range(5):
        streak.add_outcome(OutcomeKind.OK)
    streak.observed = STATUSES["H"]
    streak.restart_if_reported(STATUSES["H"])
    assert streak.successes == 5, "nothing was reported"
    streak.restart_if_reported(STATUSES["U"])
    assert streak.next_status(STATUSES["U"], 3, 2) == STATUSES["U"], "one success counts"
    streak.add_outcome(OutcomeKind.OK)
    assert streak.next_status(STATUSES["U"], 3, 2) == STATUSES["H"]

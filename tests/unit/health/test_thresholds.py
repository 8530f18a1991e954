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
    ("begin", "results", "statuses"),
    [
        pytest.param("?", "o", "H", id="the first result decides: healthy"),
        pytest.param("?", "x", "U", id="the first result decides: unhealthy"),
        pytest.param("?", "d", "D", id="the first result decides: degraded"),
        pytest.param("H", "xxx", "HHU", id="unhealthy after exactly three failures"),
        pytest.param("H", "xxoxxoxx", "HHHHHHHH", id="flapping below the threshold changes nothing"),
        pytest.param("U", "oo", "UH", id="healthy after exactly two successes"),
        pytest.param("U", "oxoxo", "UUUUU", id="a failure between successes counts from the start"),
        pytest.param("U", "dd", "UD", id="degraded answers are successes"),
        pytest.param("U", "od", "UD", id="the newest success says which"),
        pytest.param("H", "ddd", "HHD", id="degraded after three slow answers"),
        pytest.param("H", "ddoddo", "HHHHHH", id="now and then slow is healthy"),
        pytest.param("D", "oo", "DH", id="no longer degraded after two"),
        pytest.param("D", "xdxdx", "DDDDD", id="degraded and flapping stays degraded"),
        pytest.param("D", "xxx", "DDU", id="degraded to unhealthy"),
        pytest.param("M", "xxxxooood", "MMMMMMMMM", id="maintenance is sticky"),
    ],
)
def test_statuses_follow_results(begin: str, results: str, statuses: str) -> None:
    streak, status, seen = Streak(), STATUSES[begin], ""
    for result in results:
        streak.add(KINDS[result])
        status = streak.verdict(status, failure_threshold=3, success_threshold=2)
        seen += next(letter for letter, value in STATUSES.items() if value == status)
    assert seen == statuses


def test_without_a_result_nothing_changes() -> None:
    assert Streak().verdict(STATUSES["?"], 3, 2) == STATUSES["?"]

"""Endpoint selection: policies, health, and the conditions of a query."""

from collections import Counter

import pytest

from registry_client import HealthStatus, NoEndpoint, Policy, Service, make_service
from registry_client.resolve import Pool, Query, Requests, ResponseTimes, query_matcher

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
ANY_SERVICE = Query("", "", "", "", frozenset())


def agent(name: str, status: HealthStatus.ValueType = HEALTHY, **labels: str) -> Service:
    service = make_service(name, f"http://{name}.test", version="1.0.0", labels=labels)
    service.health.status = status
    return service


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pool(*services: Service, fallback: tuple[HealthStatus.ValueType, ...] = (), clock: Clock | None = None) -> Pool:
    return Pool(services, fallback, ResponseTimes(clock or Clock()), Requests())


def count_picks(from_pool: Pool, policy: Policy, count: int) -> Counter[str]:
    pick = from_pool.picker(policy)
    return Counter(pick().name for _ in range(count))


def test_round_robin_selects_all_equally_often() -> None:
    three = pool(agent("a"), agent("b"), agent("c"))
    assert count_picks(three, Policy.ROUND_ROBIN, 300) == {"a": 100, "b": 100, "c": 100}


def test_round_robin_starts_at_a_random_service() -> None:
    firsts = {pool(*map(agent, "abcdefgh")).picker(Policy.ROUND_ROBIN)().name for _ in range(200)}
    assert len(firsts) > 1


def test_selection_is_proportional_to_weights() -> None:
    weighted = pool(agent("a", weight="1"), agent("b", weight="3"), agent("never", weight="0"))
    counts = count_picks(weighted, Policy.WEIGHTED_RANDOM, 8_000)
    assert set(counts) == {"a", "b"}
    assert 0.65 < counts["b"] / 8_000 < 0.85


@pytest.mark.parametrize("weight", ["heavy", "-1", "nan", "inf", ""])
def test_invalid_weight_counts_as_one(weight: str) -> None:
    assert set(count_picks(pool(agent("a", weight=weight), agent("b")), Policy.WEIGHTED_RANDOM, 200)) == {"a", "b"}


def test_services_that_all_have_weight_zero_are_equal() -> None:
    unweighted = pool(agent("a", weight="0"), agent("b", weight="0"))
    assert set(count_picks(unweighted, Policy.WEIGHTED_RANDOM, 200)) == {"a", "b"}


def test_fastest_by_probe_of_the_registry_is_selected() -> None:
    slow, fast = agent("slow"), agent("fast")
    slow.health.response_time.FromMilliseconds(80)
    fast.health.response_time.FromMilliseconds(20)
    assert count_picks(pool(slow, fast), Policy.LEAST_RESPONSE_TIME, 20) == {"fast": 20}


def test_fastest_by_measurement_is_selected() -> None:
    clock = Clock()
    times = ResponseTimes(clock)
    services = [agent("a"), agent("b")]
    pick = Pool(services, (), times, Requests()).picker(Policy.LEAST_RESPONSE_TIME)
    times.record("a", 0.2)
    assert pick().name == "b"  # never measured
    times.record("b", 0.5)
    assert pick().name == "a"
    for _ in range(20):
        times.record("a", 0.9)
    assert pick().name == "b"


def test_measurement_expires() -> None:
    clock = Clock()
    times = ResponseTimes(clock)
    a = agent("a")
    times.record("a", 3.0)
    assert times.expected_seconds(a) == 3.0
    clock.now += 31
    assert times.expected_seconds(a) == 0
    times.record("a", 1.0)
    assert times.expected_seconds(a) == 1.0
    times.discard("a")
    assert times.expected_seconds(a) == 0


def test_less_busy_of_two_random_services_is_selected() -> None:
    requests = Requests()
    services = [agent(name) for name in "abcd"]
    pick = Pool(services, (), ResponseTimes(Clock()), requests).picker(Policy.LEAST_REQUEST)
    counts = Counter(pick().name for _ in range(400))
    assert min(counts.values()) > 90  # a random selection would vary by about 17
    for _ in range(counts["a"]):
        requests.end("a")
    assert {pick().name for _ in range(60)} >= {"a"}
    only = Pool(services[:1], (), ResponseTimes(Clock()), requests).picker(Policy.LEAST_REQUEST)
    assert {only().name for _ in range(5)} == {"a"}


def test_busy_service_is_avoided_and_its_requests_end() -> None:
    requests = Requests()
    services = agent("busy"), agent("free")
    for _ in range(50):
        requests.begin_at_less_busy(services[0], services[0])
    pick = Pool(services, (), ResponseTimes(Clock()), requests).picker(Policy.LEAST_REQUEST)
    assert [pick().name for _ in range(50)] == ["free"] * 50
    requests.discard("busy")
    requests.discard("free")
    requests.end("free")
    assert {pick().name for _ in range(2)} == {"busy", "free"}


def test_ejected_services_are_not_selected_if_others_remain() -> None:
    services = [agent(name) for name in "abcd"]

    def usable(ejected: set[str], count: int = 4) -> str:
        pool = Pool(services[:count], (), ResponseTimes(Clock()), Requests(), ejected)
        return "".join(each.name for each in pool.usable)

    assert [usable({"a"}), usable({"a", "c", "x"}), usable(set("abcd"))] == ["bcd", "bd", "cd"]
    assert [usable(set("ab"), 2), usable({"a"}, 1)] == ["b", "a"]


def test_only_healthy_services_are_selected() -> None:
    mixed = pool(agent("good"), agent("bad", UNHEALTHY), agent("slow", DEGRADED), agent("out", MAINTENANCE))
    for policy in Policy:
        assert count_picks(mixed, policy, 20) == {"good": 20}
    assert len(mixed.matching) == 4


def test_fallback_statuses_are_used_in_order() -> None:
    services = [agent("new", UNKNOWN), agent("slow", DEGRADED), agent("bad", UNHEALTHY)]
    assert pool(*services).usable == ()
    assert set(count_picks(pool(*services, fallback=(DEGRADED, UNKNOWN)), Policy.ROUND_ROBIN, 9)) == {"slow"}
    assert set(count_picks(pool(*services, fallback=(UNKNOWN, DEGRADED)), Policy.ROUND_ROBIN, 9)) == {"new"}


def test_no_endpoint_error_lists_the_unusable_services() -> None:
    query = Query("x", "^1", "", "", frozenset({("zone", "eu")}))
    error = pool(agent("a", UNHEALTHY), agent("b", UNKNOWN)).no_endpoint_error(query)
    assert (
        str(error) == "no usable service matches capability=x, version=^1, label zone=eu: found 1 unhealthy, 1 unknown"
    )
    assert str(pool().no_endpoint_error(ANY_SERVICE)) == "no service matches any service"
    assert isinstance(error, NoEndpoint)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (ANY_SERVICE, True),
        (ANY_SERVICE._replace(capability="x"), True),
        (ANY_SERVICE._replace(capability="y"), False),
        (ANY_SERVICE._replace(capability="x", version="^2"), True),
        (ANY_SERVICE._replace(capability="x", version="^1"), False),
        (ANY_SERVICE._replace(version="^1"), True),
        (ANY_SERVICE._replace(group="team"), True),
        (ANY_SERVICE._replace(group="agent"), False),
        (ANY_SERVICE._replace(environment="production"), True),
        (ANY_SERVICE._replace(environment="test"), False),
        (ANY_SERVICE._replace(labels=frozenset({("zone", "eu")})), True),
        (ANY_SERVICE._replace(labels=frozenset({("zone", "eu"), ("tier", "gold")})), False),
    ],
)
def test_query_matches_services_that_satisfy_all_conditions(query: Query, *, expected: bool) -> None:
    service = make_service(
        "agent",
        "http://agent.test",
        version="1.0.0",
        capabilities=["x@2.1.0", "z"],
        group="team",
        environment="production",
        labels={"zone": "eu"},
    )
    assert query_matcher(query)(service) is expected


def test_group_of_a_service_defaults_to_its_name() -> None:
    assert query_matcher(ANY_SERVICE._replace(group="agent"))(agent("agent"))


def test_draining_service_is_not_selected() -> None:
    leaving = agent("leaving")
    leaving.draining = True
    assert count_picks(pool(leaving, agent("staying")), Policy.ROUND_ROBIN, 4) == {"staying": 4}
    only_leaving = pool(leaving, fallback=(HEALTHY,))
    assert only_leaving.usable == ()
    assert "1 draining" in str(only_leaving.no_endpoint_error(ANY_SERVICE))

"""How an endpoint is picked: policies, health, and what a question asks for."""

from collections import Counter

import pytest

from registry_client import HealthStatus, NoEndpoint, Policy, Service, make_service
from registry_client.resolve import Pool, Question, ResponseTimes, matches

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
ANYTHING = Question("", "", "", "", frozenset())


def agent(name: str, status: HealthStatus.ValueType = HEALTHY, **labels: str) -> Service:
    service = make_service(name, f"http://{name}.test", version="1.0.0", labels=labels)
    service.health.status = status
    return service


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pool(*services: Service, fallback: tuple[HealthStatus.ValueType, ...] = (), clock: Clock | None = None) -> Pool:
    return Pool(services, fallback, ResponseTimes(clock or Clock()))


def picks(of: Pool, policy: Policy, count: int) -> Counter[str]:
    pick = of.picker(policy)
    return Counter(pick().name for _ in range(count))


def test_round_robin_gives_everybody_the_same() -> None:
    assert picks(pool(agent("a"), agent("b"), agent("c")), Policy.ROUND_ROBIN, 300) == {"a": 100, "b": 100, "c": 100}


def test_round_robin_does_not_always_begin_with_the_same() -> None:
    firsts = {pool(*map(agent, "abcdefgh")).picker(Policy.ROUND_ROBIN)().name for _ in range(200)}
    assert len(firsts) > 1


def test_weights_are_kept_to() -> None:
    weighted = pool(agent("a", weight="1"), agent("b", weight="3"), agent("never", weight="0"))
    counts = picks(weighted, Policy.WEIGHTED_RANDOM, 8_000)
    assert set(counts) == {"a", "b"}
    assert 0.65 < counts["b"] / 8_000 < 0.85


@pytest.mark.parametrize("weight", ["heavy", "-1", "nan", "inf", ""])
def test_a_weight_that_is_none_counts_as_one(weight: str) -> None:
    assert set(picks(pool(agent("a", weight=weight), agent("b")), Policy.WEIGHTED_RANDOM, 200)) == {"a", "b"}


def test_weights_of_zero_alone_prefer_nobody() -> None:
    assert set(picks(pool(agent("a", weight="0"), agent("b", weight="0")), Policy.WEIGHTED_RANDOM, 200)) == {"a", "b"}


def test_the_fastest_is_picked_by_what_the_registry_tells() -> None:
    slow, fast = agent("slow"), agent("fast")
    slow.health.response_time.FromMilliseconds(80)
    fast.health.response_time.FromMilliseconds(20)
    assert picks(pool(slow, fast), Policy.LEAST_RESPONSE_TIME, 20) == {"fast": 20}


def test_the_fastest_is_picked_by_what_was_measured() -> None:
    clock = Clock()
    times = ResponseTimes(clock)
    services = [agent("a"), agent("b")]
    pick = Pool(services, (), times).picker(Policy.LEAST_RESPONSE_TIME)
    times.add("a", 0.2)
    assert pick().name == "b"  # never measured
    times.add("b", 0.5)
    assert pick().name == "a"
    for _ in range(20):
        times.add("a", 0.9)
    assert pick().name == "b"


def test_a_measured_time_is_forgotten_after_a_while() -> None:
    clock = Clock()
    times = ResponseTimes(clock)
    a = agent("a")
    times.add("a", 3.0)
    assert times.of(a) == 3.0
    clock.now += 31
    assert times.of(a) == 0
    times.add("a", 1.0)
    assert times.of(a) == 1.0
    times.forget("a")
    assert times.of(a) == 0


def test_only_the_healthy_are_used() -> None:
    mixed = pool(agent("good"), agent("bad", UNHEALTHY), agent("slow", DEGRADED), agent("out", MAINTENANCE))
    for policy in Policy:
        assert picks(mixed, policy, 20) == {"good": 20}
    assert len(mixed.matching) == 4


def test_the_fallback_is_used_in_its_order_and_only_then() -> None:
    services = [agent("new", UNKNOWN), agent("slow", DEGRADED), agent("bad", UNHEALTHY)]
    assert pool(*services).usable == ()
    assert set(picks(pool(*services, fallback=(DEGRADED, UNKNOWN)), Policy.ROUND_ROBIN, 9)) == {"slow"}
    assert set(picks(pool(*services, fallback=(UNKNOWN, DEGRADED)), Policy.ROUND_ROBIN, 9)) == {"new"}


def test_an_error_says_what_is_there_instead() -> None:
    question = Question("x", "^1", "", "", frozenset({("zone", "eu")}))
    error = pool(agent("a", UNHEALTHY), agent("b", UNKNOWN)).refuse(question)
    assert (
        str(error)
        == "no service that matches capability=x, version=^1, label zone=eu may be used: 1 unhealthy, 1 unknown"
    )
    assert str(pool().refuse(ANYTHING)) == "no service matches any service"
    assert isinstance(error, NoEndpoint)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (ANYTHING, True),
        (ANYTHING._replace(capability="x"), True),
        (ANYTHING._replace(capability="y"), False),
        (ANYTHING._replace(capability="x", version="^2"), True),
        (ANYTHING._replace(capability="x", version="^1"), False),
        (ANYTHING._replace(version="^1"), True),
        (ANYTHING._replace(group="team"), True),
        (ANYTHING._replace(group="agent"), False),
        (ANYTHING._replace(environment="production"), True),
        (ANYTHING._replace(environment="test"), False),
        (ANYTHING._replace(labels=frozenset({("zone", "eu")})), True),
        (ANYTHING._replace(labels=frozenset({("zone", "eu"), ("tier", "gold")})), False),
    ],
)
def test_a_question_is_answered_by_who_has_all_of_it(question: Question, *, expected: bool) -> None:
    service = make_service(
        "agent",
        "http://agent.test",
        version="1.0.0",
        capabilities=["x@2.1.0", "z"],
        group="team",
        environment="production",
        labels={"zone": "eu"},
    )
    assert matches(question)(service) is expected


def test_a_service_without_a_group_is_its_own() -> None:
    assert matches(ANYTHING._replace(group="agent"))(agent("agent"))

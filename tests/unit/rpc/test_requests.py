"""``AwaitedRequests``: which calls are rejected, with a clock that is advanced."""

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import LimitExceeded, Overloaded, RegistryError, ShuttingDown
from registry_server.rpc.requests import MAX_REQUEST_SECONDS, SLOW_SECONDS, AwaitedRequests
from registry_server.security.guard import Guard
from tests.support.manual_clock import ManualClock
from tests.support.security import Policy

MIB = 1 << 20


class Call:
    """A call of a caller; keeps the error that it was refused with."""

    def __init__(self, name: str, method: str = "api-key") -> None:
        self.caller_key = (method, name)
        self.refused: RegistryError | None = None

    def refuse(self, reason: RegistryError) -> None:
        self.refused = reason


def refused(*calls: Call) -> list[type[RegistryError] | None]:
    return [type(call.refused) if call.refused is not None else None for call in calls]


def awaited(policy: Policy, clock: ManualClock, *, places: int) -> AwaitedRequests:
    """Return an instance with room for some incomplete requests, and a quarter of them without a credential."""
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings(call_bytes=places * MIB))
    return AwaitedRequests(guard, MIB, monotonic=clock)


async def test_new_requests_are_not_judged(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=4)
    calls = [Call("one") for _ in range(100)]
    for call in calls:
        requests.started(call)
    await requests.check()
    assert set(refused(*calls)) == {None}
    clock.now += SLOW_SECONDS
    for call in calls[:96]:
        requests.finished(call)
    await requests.check()
    assert set(refused(*calls)) == {None}


async def test_newest_requests_of_the_caller_with_most_are_rejected(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=4)
    many, few = [Call("many") for _ in range(50)], [Call("few") for _ in range(2)]
    for call in (*many, *few):
        clock.now += 0.001
        requests.started(call)
    clock.now += SLOW_SECONDS
    await requests.check()
    assert refused(*few) == [None, None]
    assert refused(*many) == [None, None] + [Overloaded] * 48
    assert len(requests) == 4


async def test_one_of_many_callers_may_always_finish(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=4)
    calls = [Call(str(number)) for number in range(20)]
    for call in calls:
        clock.now += 0.001
        requests.started(call)
    clock.now += SLOW_SECONDS
    await requests.check()
    assert refused(*calls) == [None] * 4 + [Overloaded] * 16


async def test_callers_without_a_credential_take_nothing_from_others(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=8)
    guests = [Call(f"192.0.2.{number}", "none") for number in range(100)]
    callers = [Call("one") for _ in range(8)]
    for call in (*guests, *callers):
        requests.started(call)
    clock.now += SLOW_SECONDS
    await requests.check()
    assert set(refused(*callers)) == {None}
    assert refused(*guests).count(None) == 2


async def test_request_has_a_deadline(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=4)
    first, second = Call("one"), Call("one")
    requests.started(first)
    clock.now += MAX_REQUEST_SECONDS / 2
    requests.started(second)
    clock.now += MAX_REQUEST_SECONDS / 2 + 0.1
    await requests.check()
    assert refused(first, second) == [LimitExceeded, None]
    assert len(requests) == 1


async def test_late_requests_end_when_the_server_shuts_down(policy: Policy, clock: ManualClock) -> None:
    requests = awaited(policy, clock, places=4)
    late, new = Call("one"), Call("one")
    requests.started(late)
    clock.now += SLOW_SECONDS
    requests.started(new)
    requests.begin_shutdown()
    await requests.check()
    assert refused(late, new) == [ShuttingDown, None]
    clock.now += SLOW_SECONDS
    await requests.check()
    assert refused(new) == [ShuttingDown]

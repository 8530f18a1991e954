"""``LeaseKeeper`` with an injected clock, sleep and source of randomness, over a fake stream."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import (
    Backoff,
    DeadlineExceeded,
    InstanceSuperseded,
    InvalidRequest,
    RegistrationState,
    RegistryError,
    RegistryUnavailable,
    Service,
    ShuttingDown,
    Unauthenticated,
    make_service,
)
from registry_client.leases import Lease, LeaseKeeper
from tests.support.waiting import until


class FakeClock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FakeStream:
    """A ``KeepAlive`` call that records heartbeats; it responds to each, or never, or ends with an error."""

    def __init__(self, *, responsive: bool = True) -> None:
        self.responsive = responsive
        self.heartbeats: list[list[str]] = []
        self.requests: list[pb.KeepAliveRequest] = []
        self.response = pb.KeepAliveResponse()
        self.error: RegistryError | None = None

    async def write(self, request: pb.KeepAliveRequest) -> None:
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        self.heartbeats.append([each.name for each in request.leases])

    async def read(self) -> pb.KeepAliveResponse:
        if not self.responsive:
            await asyncio.Event().wait()
        return self.response

    def done(self) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        pass

    def cancel(self) -> None:
        pass


class FakeChannels:
    """Channels of one target, whose ``KeepAlive`` returns a stream or raises an error."""

    target = "registry.test:50051"
    backoff = Backoff(uniform=max)

    def __init__(self, stream: FakeStream | None) -> None:
        self.stream = stream

    @property
    def stub(self) -> "FakeChannels":
        return self

    def KeepAlive(self, **_: object) -> FakeStream:  # noqa: N802 - named in the contract
        if self.stream is None:
            raise RegistryUnavailable("connection refused")
        return self.stream

    def check_usable(self) -> None:
        pass

    def name_proxy(self, *_: object) -> None:
        pass

    def call_metadata(self) -> tuple[()]:
        return ()

    def reopen_delay(self, _: str, failures: int, __: RegistryError) -> float:
        return self.backoff.delay(failures)


async def accept_all(services: Sequence[Service]) -> Sequence[Service | RegistryError]:
    return services


def lease(ttl: float) -> Lease:
    return Lease(make_service("agent", "http://agent.test", version="1.0.0", ttl=ttl))


def keeper(stream: FakeStream | None, **options: Any) -> LeaseKeeper:
    channels: Any = FakeChannels(stream)
    return LeaseKeeper(channels, accept_all, **options)


async def test_heartbeat_is_sent_when_the_jittered_interval_has_passed() -> None:
    clock, stream = FakeClock(), FakeStream()
    leases = keeper(stream, clock=clock, uniform=lambda _, upper_bound: upper_bound)
    kept = lease(ttl=60)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)
    assert kept.due == pytest.approx(clock.now + 0.9 * 20)
    assert stream.heartbeats == [["agent"]]

    clock.now += 17.9
    leases._wake.set()
    await asyncio.sleep(0.01)
    assert len(stream.heartbeats) == 1

    clock.now += 0.2
    leases._wake.set()
    await until(lambda: len(stream.heartbeats) == 2)
    await leases.close()


async def test_retries_are_spaced_by_at_most_a_quarter_of_the_interval() -> None:
    delays: list[float] = []

    async def record_delay(seconds: float) -> None:
        delays.append(seconds)
        await asyncio.sleep(0)

    leases = keeper(None, sleep=record_delay)
    kept = lease(ttl=6)
    leases.add_lease(kept)
    await until(lambda: len(delays) >= 10)
    assert delays[:5] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert isinstance(kept.error, RegistryUnavailable)
    await leases.close()


async def test_missing_heartbeat_response_is_a_failure() -> None:
    leases = keeper(FakeStream(responsive=False), min_heartbeat_timeout=0.01)
    kept = lease(ttl=0.03)
    leases.mark_registered(kept, kept.service)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.AWAY)
    assert isinstance(kept.error, DeadlineExceeded)
    await leases.close()


@pytest.mark.parametrize("error", [ShuttingDown("drain"), RegistryUnavailable("proxy"), Unauthenticated("expired")])
async def test_end_of_an_answered_stream_is_not_reported(error: RegistryError) -> None:
    stream = FakeStream()
    leases = keeper(stream)
    kept = lease(ttl=60)
    states: list[RegistrationState] = []
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)
    kept.listeners.subscribe(states.append)

    stream.error, kept.due = error, 0.0
    leases._wake.set()
    await until(lambda: leases._failures == 1)
    stream.error = None
    await until(lambda: len(stream.heartbeats) == 2)
    assert (states, kept.error) == ([], None)
    await leases.close()


async def test_stream_that_cannot_be_opened_again_soon_is_reported() -> None:
    stream, clock = FakeStream(), FakeClock()
    channels: Any = FakeChannels(stream)
    leases = LeaseKeeper(channels, accept_all, clock=clock)
    kept = lease(ttl=60)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)

    stream.error, kept.due = ShuttingDown("drain"), 0.0
    channels.stream = None
    leases._wake.set()
    await until(lambda: leases._failures >= 2)
    assert kept.state is RegistrationState.REGISTERED
    clock.now += 1.1
    await until(lambda: kept.state is RegistrationState.AWAY)
    await leases.close()


async def test_rejected_credential_of_a_new_stream_is_reported() -> None:
    stream = FakeStream()
    leases = keeper(stream)
    kept = lease(ttl=60)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)
    stream.error, kept.due = Unauthenticated("revoked"), 0.0
    leases._wake.set()
    await until(lambda: kept.state is RegistrationState.REFUSED)
    await leases.close()


async def test_superseded_lease_is_final() -> None:
    registrations: list[str] = []

    async def record(services: Sequence[Service]) -> Sequence[Service | RegistryError]:
        registrations.extend(each.name for each in services)
        return services

    stream, clock = FakeStream(), FakeClock()
    channels: Any = FakeChannels(stream)
    leases = LeaseKeeper(channels, record, clock=clock)
    kept = lease(ttl=60)
    states: list[RegistrationState] = []
    kept.service.instance_id = "one"
    kept.listeners.subscribe(states.append)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)
    assert stream.requests[0].leases == [pb.Lease(name="agent", instance_id="one")]

    stream.response = pb.KeepAliveResponse(superseded_names=["agent"])
    clock.now += 60
    leases._wake.set()
    await until(lambda: kept.state is RegistrationState.SUPERSEDED)
    assert isinstance(kept.error, InstanceSuperseded)
    stream.response = pb.KeepAliveResponse(unknown_names=["agent"])
    sent = len(stream.requests)
    clock.now += 600
    leases._wake.set()
    await asyncio.sleep(0.05)
    await leases.close()
    assert (len(stream.requests), registrations) == (sent, ["agent"])
    assert states == [RegistrationState.REGISTERED, RegistrationState.SUPERSEDED]


async def test_draining_lease_is_not_registered_again() -> None:
    stream, clock = FakeStream(), FakeClock()
    leases = keeper(stream, clock=clock)
    kept = lease(ttl=60)
    leases.add_lease(kept)
    await until(lambda: kept.state is RegistrationState.REGISTERED)
    kept.draining = True
    stream.response = pb.KeepAliveResponse(unknown_names=["agent"])
    clock.now += 60
    leases._wake.set()
    await until(lambda: not kept.known)
    assert stream.requests[-1].leases[0].draining
    sent = len(stream.requests)
    clock.now += 600
    leases._wake.set()
    await asyncio.sleep(0.05)
    assert (len(stream.requests), kept.known) == (sent, False)
    await leases.close()


async def test_registry_of_the_previous_version_receives_names() -> None:
    class PreviousVersion(FakeStream):
        async def write(self, request: pb.KeepAliveRequest) -> None:
            if not request.names:
                raise InvalidRequest("names is empty")
            await super().write(request)

    stream = PreviousVersion()
    leases = keeper(stream)
    kept = lease(ttl=60)
    states: list[RegistrationState] = []
    leases.mark_registered(kept, kept.service)
    kept.listeners.subscribe(states.append)
    leases.add_lease(kept)
    await until(lambda: stream.requests)
    assert stream.requests[0] == pb.KeepAliveRequest(names=["agent"])
    assert states == []
    await leases.close()

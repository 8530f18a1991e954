"""``LeaseKeeper`` with an injected clock, sleep and source of randomness, over a fake stream."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ossa.registry.v1.registry_service_pb2 import KeepAliveRequest, KeepAliveResponse
from registry_client import (
    Backoff,
    DeadlineExceeded,
    RegistrationState,
    RegistryError,
    RegistryUnavailable,
    Service,
    make_service,
)
from registry_client.leases import Lease, LeaseKeeper
from tests.support.waiting import until


class FakeClock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FakeStream:
    """A ``KeepAlive`` call that records heartbeats; it responds to each, or never."""

    def __init__(self, *, responsive: bool = True) -> None:
        self.responsive = responsive
        self.heartbeats: list[list[str]] = []

    async def write(self, request: KeepAliveRequest) -> None:
        self.heartbeats.append(list(request.names))

    async def read(self) -> KeepAliveResponse:
        if not self.responsive:
            await asyncio.Event().wait()
        return KeepAliveResponse()

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

    def call_metadata(self) -> tuple[()]:
        return ()

    def fail_over(self, _: str, failures: int) -> float:
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

"""``IdleStreams``: which streams end, with a clock that is advanced."""

import pytest

from registry_server.errors import LimitExceeded, RegistryError, ShuttingDown
from registry_server.rpc.idle import MAX_FIRST_MESSAGE_SECONDS, IdleStreams
from tests.support.manual_clock import ManualClock


class Stream:
    """A stream; keeps the error that it was ended with."""

    def __init__(self, *, has_received: bool = True) -> None:
        self.has_received = has_received
        self.ended: RegistryError | None = None

    def refuse(self, reason: RegistryError) -> None:
        self.ended = reason


@pytest.mark.parametrize(("idle_seconds", "first"), [(3_600, MAX_FIRST_MESSAGE_SECONDS), (5, 5)])
async def test_first_message_has_a_shorter_limit(clock: ManualClock, idle_seconds: float, first: float) -> None:
    streams = IdleStreams(idle_seconds, monotonic=clock)
    new, old = Stream(has_received=False), Stream()
    streams.started(new)
    clock.now += first - 1
    streams.started(old)
    await streams.check()
    assert new.ended is None
    clock.now += 1
    await streams.check()
    assert isinstance(new.ended, LimitExceeded)
    assert old.ended is None
    clock.now += idle_seconds - 1
    await streams.check()
    assert isinstance(old.ended, LimitExceeded)
    assert len(streams) == 0


async def test_streams_whose_message_has_arrived_continue(clock: ManualClock) -> None:
    streams, stream = IdleStreams(5, monotonic=clock), Stream()
    streams.started(stream)
    clock.now += 5
    streams.finished(stream)
    await streams.check()
    assert stream.ended is None


async def test_all_waiting_streams_end_at_shutdown(clock: ManualClock) -> None:
    streams = IdleStreams(5, monotonic=clock)
    waiting = [Stream(has_received=number % 2 == 0) for number in range(120)]
    busy = Stream()
    for stream in waiting:
        streams.started(stream)
    streams.begin_shutdown()
    await streams.check()
    assert {type(stream.ended) for stream in waiting} == {ShuttingDown}
    streams.started(busy)
    await streams.check()
    assert isinstance(busy.ended, ShuttingDown)

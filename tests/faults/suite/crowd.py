"""Many cheap watchers, which only check that they receive every revision once."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import grpc

from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from registry_server.runtime.tasks import cancel
from tests.faults.suite.history import Follower
from tests.faults.suite.stage import PROCESSES, RECOVERY_TIMEOUT_SECONDS

_WATCHERS_PER_CONNECTION = 100
_METHOD = "/ossa.registry.v1.RegistryService/WatchEvents"


class _Content(NamedTuple):
    """The checked content of a message."""

    revisions: tuple[int, ...]
    cursor: str
    revision: int


class Crowd:
    """Watchers, distributed over the processes and a few connections.

    All watchers receive the same bytes, so each message is parsed once.
    """

    def __init__(self, channel: Callable[[int], grpc.aio.Channel]) -> None:
        self._open = channel
        self._channels: list[grpc.aio.Channel] = []
        self._followers: list[Follower] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._awake = asyncio.Event()
        self._contents: dict[bytes, _Content] = {}

    async def join(self, count: int, *, asleep: bool = False) -> None:
        """Start more watchers and wait until each watch is established.

        Args:
            count: Number of watchers.
            asleep: Whether they stop reading after their first message until ``wake`` is called.
        """
        if not asleep:
            self._awake.set()
        opened = []
        for i in range(count):
            if i % _WATCHERS_PER_CONNECTION < PROCESSES:
                self._channels.append(self._open(i % PROCESSES))
            follower = Follower(f"follower-{len(self._followers)}", 0, 0)
            self._followers.append(follower)
            opened.append(asyncio.Event())
            watch = self._watch(follower, self._channels[-1 - i % len(self._channels)], opened[-1])
            self._tasks.append(asyncio.create_task(watch))
        async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
            for each in opened:
                await each.wait()

    def wake(self) -> None:
        """Resume reading of sleeping watchers."""
        self._awake.set()

    async def settle(self, revision: int, timeout_seconds: float) -> list[Follower]:
        """Wait until all watchers reach a revision or report an error, and return their summaries."""
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while any(each.last < revision and not each.error for each in self._followers):
                    await asyncio.sleep(0.05)
        return self._followers

    async def close(self) -> None:
        """End all watches."""
        await cancel(self._tasks)
        for channel in self._channels:
            await channel.close()

    async def _watch(self, follower: Follower, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        watch: Any = channel.unary_stream(_METHOD, request_serializer=WatchEventsRequest.SerializeToString)
        cursor = ""
        while not follower.error:
            request = WatchEventsRequest(cursor=cursor)
            request.bookmark_interval.FromMilliseconds(500)
            try:
                async for wire in watch(request):
                    content = self._content(wire)
                    self._check(follower, content, first=not opened.is_set())
                    cursor = content.cursor
                    opened.set()
                    await self._awake.wait()
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    follower.error = f"the watch ended with {error.code().name} after revision {follower.last}"
                await asyncio.sleep(0.05)

    @staticmethod
    def _check(follower: Follower, content: _Content, *, first: bool) -> None:
        if first:
            follower.first = content.revision - len(content.revisions)
            follower.last = follower.first
        for revision in content.revisions:
            if revision != follower.last + 1 and not follower.error:
                follower.error = f"received revision {revision} after {follower.last}"
            follower.last = revision
        if follower.last != content.revision and not follower.error:
            follower.error = f"moved from revision {follower.last} to {content.revision} without events"

    def _content(self, wire: bytes) -> _Content:
        content = self._contents.get(wire)
        if content is None:
            message = WatchEventsResponse.FromString(wire)
            content = _Content(tuple(event.revision for event in message.events), message.cursor, message.revision)
            self._contents[wire] = content
        return content

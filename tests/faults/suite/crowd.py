"""Very many watchers, which cost little: each checks only that it is told every revision once."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import grpc

from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from registry_server.tasks import cancel
from tests.faults.suite.history import Follower
from tests.faults.suite.stage import PATIENCE, PROCESSES

_ON_ONE_CONNECTION = 100
_METHOD = "/ossa.registry.v1.RegistryService/WatchEvents"


class _Content(NamedTuple):
    """What counts of a message."""

    revisions: tuple[int, ...]
    cursor: str
    revision: int


class Crowd:
    """Watchers, spread over the processes and a few connections.

    All of them get the same bytes: a message is parsed once.
    """

    def __init__(self, channel: Callable[[int], grpc.aio.Channel]) -> None:
        self._open = channel
        self._channels: list[grpc.aio.Channel] = []
        self._followers: list[Follower] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._awake = asyncio.Event()
        self._contents: dict[bytes, _Content] = {}

    async def join(self, count: int, *, asleep: bool = False) -> None:
        """Lets more watchers begin, from now on; returns once each of them watches.

        Args:
            count: How many.
            asleep: They read nothing after their first message, until ``wake``.
        """
        if not asleep:
            self._awake.set()
        opened = []
        for i in range(count):
            if i % _ON_ONE_CONNECTION < PROCESSES:
                self._channels.append(self._open(i % PROCESSES))
            follower = Follower(f"follower-{len(self._followers)}", 0, 0)
            self._followers.append(follower)
            opened.append(asyncio.Event())
            watch = self._watch(follower, self._channels[-1 - i % len(self._channels)], opened[-1])
            self._tasks.append(asyncio.create_task(watch))
        async with asyncio.timeout(PATIENCE):
            for each in opened:
                await each.wait()

    def wake(self) -> None:
        """Lets those read on that are asleep."""
        self._awake.set()

    async def settle(self, revision: int, within: float) -> list[Follower]:
        """Waits until all have been told of a revision, or something else is wrong; gives what they saw."""
        self.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while any(each.last < revision and not each.hole for each in self._followers):
                    await asyncio.sleep(0.05)
        return self._followers

    async def close(self) -> None:
        """Ends all watches."""
        await cancel(self._tasks)
        for channel in self._channels:
            await channel.close()

    async def _watch(self, follower: Follower, channel: grpc.aio.Channel, opened: asyncio.Event) -> None:
        watch: Any = channel.unary_stream(_METHOD, request_serializer=WatchEventsRequest.SerializeToString)
        cursor = ""
        while not follower.hole:
            request = WatchEventsRequest(cursor=cursor)
            request.bookmark_interval.FromMilliseconds(500)
            try:
                async for wire in watch(request):
                    content = self._content(wire)
                    self._take(follower, content, first=not opened.is_set())
                    cursor = content.cursor
                    opened.set()
                    await self._awake.wait()
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    follower.hole = f"the watch ended with {error.code().name} after revision {follower.last}"
                await asyncio.sleep(0.05)

    @staticmethod
    def _take(follower: Follower, content: _Content, *, first: bool) -> None:
        if first:
            follower.first = content.revision - len(content.revisions)
            follower.last = follower.first
        for revision in content.revisions:
            if revision != follower.last + 1 and not follower.hole:
                follower.hole = f"revision {revision} was told after {follower.last}"
            follower.last = revision
        if follower.last != content.revision and not follower.hole:
            follower.hole = f"it was moved from revision {follower.last} to {content.revision} without a word"

    def _content(self, wire: bytes) -> _Content:
        content = self._contents.get(wire)
        if content is None:
            message = WatchEventsResponse.FromString(wire)
            content = _Content(tuple(event.revision for event in message.events), message.cursor, message.revision)
            self._contents[wire] = content
        return content

"""A reader of event streams that does what the HTML standard says of ``EventSource``, as far as it matters here."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from tests.rest import spec
from tests.rest.client import BASE

GONE = ("service:unregistered", "service:unmatched")
ABOUT_SERVICES = (*GONE, "service:registered", "service:updated", "service:health:changed", "service:snapshot")
TIMEOUT = 30.0


class Told(NamedTuple):
    """One event."""

    name: str
    data: Any
    id: str
    """Last id that the stream gave, with this event at the latest."""


class Stream:
    """One stream, from its first byte to its end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.id = ""
        self.retry_ms = 0
        self.comments = 0
        self._name = ""
        self._data: list[str] = []
        self._begun = b""
        self._complete: deque[bytes] = deque()

    async def lines(self) -> AsyncIterator[str]:
        """The lines, each without its end; who stops and comes again misses none."""
        while self._complete:
            yield self._complete.popleft().decode()
        async for chunk in self.response.content.iter_any():
            *complete, self._begun = (self._begun + chunk).split(b"\n")
            self._complete.extend(complete)
            while self._complete:
                yield self._complete.popleft().decode()

    async def __aiter__(self) -> AsyncIterator[Told]:
        async for line in self.lines():
            told = self.take(line)
            if told is not None:
                yield told

    def take(self, line: str) -> Told | None:
        """Takes a line; gives the event that it completes."""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "" if line:
                self.comments += 1
            case "id":
                self.id = value
            case "event":
                self._name = value
            case "retry":
                self.retry_ms = int(value)
            case "data":
                self._data.append(value)
            case "" if self._data:
                told = Told(self._name, json.loads("\n".join(self._data)), self.id)
                self._name, self._data = "", []
                if told.name in ABOUT_SERVICES:
                    assert spec.schema("Change").violations(told.data) == []
                return told
            case "":
                self._name = ""
            case _:
                raise AssertionError(f"not a line of an event stream: {line!r}")
        return None

    async def next(self) -> Told:
        """Waits for the next event."""
        async with asyncio.timeout(TIMEOUT):
            async for told in self:
                return told
        raise AssertionError("the stream ended")

    async def take_until_id(self, after: str = "") -> str:
        """Reads lines until there is an id other than ``after``."""
        async with asyncio.timeout(TIMEOUT):
            async for line in self.lines():
                self.take(line)
                if self.id != after:
                    return self.id
        raise AssertionError("the stream ended")

    async def some(self, count: int) -> list[Told]:
        """Waits for so many events."""
        return [await self.next() for _ in range(count)]

    async def rest(self) -> list[Told]:
        """Everything up to the end of the stream."""
        async with asyncio.timeout(TIMEOUT):
            return [told async for told in self]


@asynccontextmanager
async def streaming(
    base: str, query: str = "", headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Stream]:
    """An open stream, on a connection of its own."""
    url = URL(f"{base}{BASE}/events{'?' + query if query else ''}", encoded=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout, **options) as session,
        session.get(url, headers=headers) as response,
    ):
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Stream(response)


class Follower:
    """Follows the registry into a dict as a page with an ``EventSource`` would, over any number of streams."""

    def __init__(self, base: str, query: str = "snapshot=true") -> None:
        self._base = base
        self._query = query
        self.state: dict[str, dict[str, Any]] = {}
        self.revisions: list[int] = []
        """Of every change that it was told of, snapshots left out."""
        self.streams = 0
        self.snapshots = 0
        self.id = ""
        self._news = asyncio.Event()
        self._stream: Stream | None = None

    async def follow(self) -> None:
        """Follows until cancelled."""
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.id} if self.id else {})
            try:
                async with streaming(self._base, self._query, headers) as stream:
                    self.streams += 1
                    self._stream = stream
                    stream.id = self.id
                    async for line in stream.lines():
                        told = stream.take(line)
                        self.id = stream.id
                        if told is not None:
                            self.take(told)
                        self._news.set()
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.01)  # a browser waits for `retry`

    def cut(self) -> None:
        """Cuts the stream, as a lost connection would."""
        if self._stream is not None and self._stream.response.connection is not None:
            transport = self._stream.response.connection.transport
            if transport is not None:
                transport.abort()

    def take(self, told: Told) -> None:
        """Applies an event; fails on one that is repeated or out of order."""
        if told.name == "registry:snapshot:started":
            self.snapshots += 1
            self.state.clear()
            return
        if told.name not in ABOUT_SERVICES:
            return
        name = told.data["service"]["name"]
        if told.name == "service:snapshot":
            assert name not in self.state
            self.state[name] = told.data["service"]
            return
        if told.data["reason"] == "resync":  # one step of many events, perhaps to another count of revisions
            self.revisions.clear()
        assert told.data["revision"] > (self.revisions[-1] if self.revisions else -1)
        self.revisions.append(told.data["revision"])
        if told.name in GONE:
            del self.state[name]
        else:
            self.state[name] = told.data["service"]

    async def reached(self, revision: int) -> None:
        """Waits until it was told of a revision."""
        async with asyncio.timeout(TIMEOUT):
            while not self.revisions or self.revisions[-1] < revision:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def following(base: str, query: str = "snapshot=true") -> AsyncIterator[Follower]:
    """A follower that follows until the context is left."""
    follower = Follower(base, query)
    task = asyncio.create_task(follower.follow())
    try:
        yield follower
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

"""A client of event streams that implements the parts of the HTML standard's ``EventSource`` that the tests need."""

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

REMOVALS = ("service:unregistered", "service:unmatched")
SERVICE_EVENTS = (*REMOVALS, "service:registered", "service:updated", "service:health:changed", "service:snapshot")
TIMEOUT_SECONDS = 30.0


class SseEvent(NamedTuple):
    """A parsed event."""

    name: str
    data: Any
    id: str
    """The newest id of the stream, including this event's."""


class Stream:
    """Parses one stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.id = ""
        self.retry_ms = 0
        self.comments = 0
        self._name = ""
        self._data: list[str] = []
        self._partial_line = b""
        self._complete_lines: deque[bytes] = deque()

    async def lines(self) -> AsyncIterator[str]:
        """Yield lines; a caller that stops iterating can resume without losing lines."""
        while self._complete_lines:
            yield self._complete_lines.popleft().decode()
        async for chunk in self.response.content.iter_any():
            *complete, self._partial_line = (self._partial_line + chunk).split(b"\n")
            self._complete_lines.extend(complete)
            while self._complete_lines:
                yield self._complete_lines.popleft().decode()

    async def __aiter__(self) -> AsyncIterator[SseEvent]:
        async for line in self.lines():
            event = self.parse_line(line)
            if event is not None:
                yield event

    def parse_line(self, line: str) -> SseEvent | None:
        """Parse a line; return the event that it completes, if any."""
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
                event = SseEvent(self._name, json.loads("\n".join(self._data)), self.id)
                self._name, self._data = "", []
                if event.name in SERVICE_EVENTS:
                    assert spec.schema("Change").violations(event.data) == []
                return event
            case "":
                self._name = ""
            case _:
                raise AssertionError(f"not a line of an event stream: {line!r}")
        return None

    async def next_event(self) -> SseEvent:
        """Return the next event."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async for event in self:
                return event
        raise AssertionError("the stream ended")

    async def read_until_id(self, after: str = "") -> str:
        """Read until the id is not ``after``; return it."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async for line in self.lines():
                self.parse_line(line)
                if self.id != after:
                    return self.id
        raise AssertionError("the stream ended")

    async def next_events(self, count: int) -> list[SseEvent]:
        """Return the next ``count`` events."""
        return [await self.next_event() for _ in range(count)]

    async def remaining_events(self) -> list[SseEvent]:
        """Return the events until the stream ends."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return [event async for event in self]


@asynccontextmanager
async def streaming(
    base: str, query: str = "", headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Stream]:
    """Open a stream on a separate connection."""
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
    """Mirrors the registry in a dict as a page with an ``EventSource`` would, reconnecting as needed."""

    def __init__(self, base: str, query: str = "snapshot=true") -> None:
        self._base = base
        self._query = query
        self.state: dict[str, dict[str, Any]] = {}
        self.revisions: list[int] = []
        """Revisions of all changes received, without snapshots."""
        self.streams = 0
        self.snapshots = 0
        self.id = ""
        self._news = asyncio.Event()
        self._stream: Stream | None = None

    async def follow(self) -> None:
        """Follow the registry until cancelled."""
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.id} if self.id else {})
            try:
                async with streaming(self._base, self._query, headers) as stream:
                    self.streams += 1
                    self._stream = stream
                    stream.id = self.id
                    async for line in stream.lines():
                        event = stream.parse_line(line)
                        self.id = stream.id
                        if event is not None:
                            self.apply(event)
                        self._news.set()
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.01)  # a browser waits for `retry`

    def disconnect(self) -> None:
        """Abort the connection."""
        if self._stream is not None and self._stream.response.connection is not None:
            transport = self._stream.response.connection.transport
            if transport is not None:
                transport.abort()

    def apply(self, event: SseEvent) -> None:
        """Apply an event; fail if it is repeated or out of order."""
        if event.name == "registry:snapshot:started":
            self.snapshots += 1
            self.state.clear()
            return
        if event.name not in SERVICE_EVENTS:
            return
        name = event.data["service"]["name"]
        if event.name == "service:snapshot":
            assert name not in self.state
            self.state[name] = event.data["service"]
            return
        if event.data["reason"] == "resync":  # one step of many events, possibly with a new numbering of revisions
            self.revisions.clear()
        assert event.data["revision"] > (self.revisions[-1] if self.revisions else -1)
        self.revisions.append(event.data["revision"])
        if event.name in REMOVALS:
            del self.state[name]
        else:
            self.state[name] = event.data["service"]

    async def wait_for_revision(self, revision: int) -> None:
        """Wait until a revision was received."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not self.revisions or self.revisions[-1] < revision:
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def following(base: str, query: str = "snapshot=true") -> AsyncIterator[Follower]:
    """Run a follower within the block."""
    follower = Follower(base, query)
    task = asyncio.create_task(follower.follow())
    try:
        yield follower
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

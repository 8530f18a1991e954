"""Agents that are there: real HTTP endpoints on loopback, which count who asks and can be made to fail."""

import asyncio
import random
import socket
import time
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from typing import Any, Self

from aiohttp import web

from ossa.registry.v1.service_pb2 import Service
from tests.support.redis_process import PORTS
from tests.support.samples import small_service

TIMEOUT = 30.0
"""Seconds until what must come is given up: far more than it takes, also on a busy machine."""
_BACKLOG = 1024


class Behaviour(Enum):
    """How an agent takes a question."""

    OK = "answers 200"
    ERROR = "answers 500"
    CLOSE = "closes the connection"
    HANG = "never answers"


class Agents:
    """Any number of agents at one server, each at a path of its own.

    Args:
        delay: Seconds that each answer takes.
    """

    def __init__(self, *, delay: float = 0.0) -> None:
        self.delay = delay
        self.hits: defaultdict[str, list[float]] = defaultdict(list)
        """By name, when it was asked: monotonic seconds, ascending."""
        self.under_way = 0
        """Questions that wait for their answer now."""
        self._behaviours: dict[str, Behaviour] = {}
        # Who asks and gives up leaves no task behind.
        self._runner = web.ServerRunner(web.Server(self._answer, handler_cancellation=True), shutdown_timeout=0)
        self._site: web.SockSite | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def names(self) -> list[str]:
        """All that there are, also those that nobody has asked yet."""
        return list(self._behaviours)

    def service(self, name: str, **fields: Any) -> Service:
        """Makes an agent; gives the service as it is to be registered."""
        self._behaviours[name] = Behaviour.OK
        return small_service(name, endpoint=f"http://127.0.0.1:{self._port}/{name}", **fields)

    def services(self, count: int, prefix: str = "agent", **fields: Any) -> list[Service]:
        """The same for many."""
        return [self.service(f"{prefix}-{i:03d}", **fields) for i in range(count)]

    def behave(self, behaviour: Behaviour, names: Iterable[str] | None = None) -> None:
        """Lets some of them, or all, take questions so from now on."""
        for name in self.names if names is None else names:
            assert name in self._behaviours
            self._behaviours[name] = behaviour

    async def refuse(self) -> None:
        """Refuses connections from now on, all agents alike."""
        assert self._site is not None
        await self._site.stop()
        self._site = None

    async def listen(self) -> None:
        """Takes connections again, on the port that it had."""
        self._site = web.SockSite(self._runner, self._bound(), backlog=_BACKLOG)
        await self._site.start()

    # What came.

    def hits_between(self, since: float, until: float) -> dict[str, int]:
        """How often each was asked in a time."""
        return {name: sum(since <= at < until for at in self.hits[name]) for name in self.names}

    def first_hits(self, since: float) -> dict[str, float]:
        """When each was asked first since a time; without those that were not."""
        firsts = {name: next((at for at in self.hits[name] if at >= since), None) for name in self.names}
        return {name: at for name, at in firsts.items() if at is not None}

    async def asked(self, names: Iterable[str] | None = None, *, since: float = 0.0, times: int = 1) -> None:
        """Waits until each of some, or of all, was asked so often since a time."""
        waiting = set(self.names if names is None else names)
        try:
            async with asyncio.timeout(TIMEOUT):
                while waiting:
                    waiting = {name for name in waiting if sum(at >= since for at in self.hits[name]) < times}
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not asked {times} times in {TIMEOUT} s: {sorted(waiting)}") from None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        name = request.path.removeprefix("/").removesuffix("/health")
        self.hits[name].append(time.monotonic())
        self.under_way += 1
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            match self._behaviours.get(name):
                case Behaviour.OK:
                    return web.Response()
                case Behaviour.ERROR:
                    return web.Response(status=500)
                case Behaviour.CLOSE:
                    if request.transport is not None:
                        request.transport.abort()
                    return web.Response()
                case Behaviour.HANG:
                    await asyncio.Event().wait()
                    return web.Response()
                case _:
                    return web.Response(status=404)
        finally:
            self.under_way -= 1

    def _bound(self) -> socket.socket:
        # Nobody's outgoing connection takes such a port while nothing listens there.
        for port in [self._port] if self._port else random.sample(PORTS, 100):
            bound = socket.socket()
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(("127.0.0.1", port))
            except OSError:
                bound.close()
                continue
            self._port = port
            return bound
        raise RuntimeError("no free port found")

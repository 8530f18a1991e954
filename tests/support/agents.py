"""HTTP endpoints of agents on loopback, which record health checks and can be made to fail."""

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
"""Time limit of waits in seconds, long enough for a busy machine."""
_BACKLOG = 1024


class Behaviour(Enum):
    """How an agent responds to a request."""

    OK = "returns 200"
    ERROR = "returns 500"
    CLOSE = "closes the connection"
    HANG = "never responds"


class Agents:
    """Any number of agents on one server, each at a separate path.

    Args:
        delay: Seconds before each response.
    """

    def __init__(self, *, delay: float = 0.0) -> None:
        self.delay = delay
        self.hits: defaultdict[str, list[float]] = defaultdict(list)
        """Times of the requests by name, in ascending monotonic seconds."""
        self.in_flight = 0
        """Number of requests without a response."""
        self._behaviours: dict[str, Behaviour] = {}
        # A handler is cancelled when its client disconnects.
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
        """Return the names of all agents, including those without requests."""
        return list(self._behaviours)

    def service(self, name: str, **fields: Any) -> Service:
        """Create an agent and return its service definition."""
        self._behaviours[name] = Behaviour.OK
        return small_service(name, endpoint=f"http://127.0.0.1:{self._port}/{name}", **fields)

    def services(self, count: int, prefix: str = "agent", **fields: Any) -> list[Service]:
        """Create several agents and return their service definitions."""
        return [self.service(f"{prefix}-{i:03d}", **fields) for i in range(count)]

    def set_behaviour(self, behaviour: Behaviour, names: Iterable[str] | None = None) -> None:
        """Set the behaviour of some agents, or of all."""
        for name in self.names if names is None else names:
            assert name in self._behaviours
            self._behaviours[name] = behaviour

    async def refuse(self) -> None:
        """Refuse connections to all agents."""
        assert self._site is not None
        await self._site.stop()
        self._site = None

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._site = web.SockSite(self._runner, self._bound(), backlog=_BACKLOG)
        await self._site.start()

    # Recorded requests.

    def hits_between(self, since: float, until: float) -> dict[str, int]:
        """Return the number of requests to each agent within an interval."""
        return {name: sum(since <= at < until for at in self.hits[name]) for name in self.names}

    def first_hits(self, since: float) -> dict[str, float]:
        """Return the time of the first request since ``since``, without agents that received none."""
        firsts = {name: next((at for at in self.hits[name] if at >= since), None) for name in self.names}
        return {name: at for name, at in firsts.items() if at is not None}

    async def wait_for_requests(
        self, names: Iterable[str] | None = None, *, since: float = 0.0, times: int = 1
    ) -> None:
        """Wait until each of some agents, or of all, has received ``times`` requests since ``since``."""
        waiting = set(self.names if names is None else names)
        try:
            async with asyncio.timeout(TIMEOUT):
                while waiting:
                    waiting = {name for name in waiting if sum(at >= since for at in self.hits[name]) < times}
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"fewer than {times} requests in {TIMEOUT} s: {sorted(waiting)}") from None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        name = request.path.removeprefix("/").removesuffix("/health")
        self.hits[name].append(time.monotonic())
        self.in_flight += 1
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
            self.in_flight -= 1

    def _bound(self) -> socket.socket:
        # Not an ephemeral port: no outgoing connection can take it while it is closed.
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

"""Servers for tests: in the test's event loop, or as separate processes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc

from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_server.app import serving
from registry_server.config import GrpcSettings, HttpSettings, RedisSettings, RedisUrl, Settings
from registry_server.parts import Parts
from tests.support.forked import ForkedProcess

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

ROOT = Path(__file__).parents[2]
START_TIMEOUT_SECONDS = 30.0
DEFAULT_MODULE = ("registry_server",)


class Server(NamedTuple):
    """A server in the test's event loop, and a client connected to it."""

    stub: "RegistryServiceAsyncStub"
    channel: grpc.aio.Channel
    parts: Parts
    grpc_address: str
    http: str
    """Base URL of the HTTP server."""


def settings(redis_url: str, **sections: Mapping[str, Any]) -> Settings:
    """Return settings of a server on free ports; ``sections`` such as ``watch={"buffer_events": 3}`` override defaults.

    Probing is disabled unless ``health_check`` is given: the endpoints of most tests do not exist.
    """
    values: dict[str, Any] = {"shutdown": {"grace_seconds": 2}, "health_check": {"enabled": False}, **sections}
    redis = {"url": RedisUrl(redis_url), **values.pop("redis", {})}
    return Settings(
        redis=RedisSettings(**redis),
        grpc=GrpcSettings(**{"address": "127.0.0.1:0", **values.pop("grpc", {})}),
        http=HttpSettings(**{"address": "127.0.0.1:0", **values.pop("http", {})}),
        **values,
    )


def import_from(source: Path) -> dict[str, str]:
    """Return the variables with which Python prefers the modules of a source tree to those of this checkout."""
    return {"PYTHONPATH": f"{source}{os.pathsep}{source / 'generated'}"}


@asynccontextmanager
async def running(redis_url: str, **sections: Mapping[str, Any]) -> AsyncIterator[Server]:
    """Run a server in this event loop within the block."""
    async with serving(settings(redis_url, **sections)) as served:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            await served.parts.loaded.wait()
        async with connected(served.grpc_address) as (channel, stub):
            yield Server(stub, channel, served.parts, served.grpc_address, f"http://{served.http_address}")


@asynccontextmanager
async def connected(address: str) -> AsyncIterator["tuple[grpc.aio.Channel, RegistryServiceAsyncStub]"]:
    """Yield a channel with a separate connection: channels with equal arguments would share one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel, RegistryServiceStub(channel)


class ServerProcess:
    """``python -m registry_server`` as a process, for signals, kills and several servers at a time.

    Probing is disabled unless a flag enables it. ``module`` replaces the module and its first arguments, ``source`` the
    directory from which all modules are imported. With one of these or with variables, which modules read at import, it
    does not start as a fork of a process that has imported them, nor with ``forked=False``, for measurements.
    """

    def __init__(
        self,
        *flags: str,
        env: Mapping[str, str] | None = None,
        module: Sequence[str] = DEFAULT_MODULE,
        source: Path = ROOT,
        forked: bool = True,
    ) -> None:
        self._flags, self._module, self._source = flags, module, source
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("OSSA_REGISTRY_")} | dict(env or {})
        if source != ROOT:
            self._env |= import_from(source)
        self._forked = forked and not env and module == DEFAULT_MODULE and source == ROOT
        self._process: asyncio.subprocess.Process | ForkedProcess | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.log: list[dict[str, Any]] = []
        """Log records so far; lines that are not JSON become ``{"event": line}``."""
        self.grpc_address = ""
        self.http_address = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it serves."""
        self.log.clear()
        defaults = ("--grpc.address=127.0.0.1:0", "--http.address=127.0.0.1:0", "--health-check.enabled=false")
        command = (*self._module, *defaults, *self._flags)
        if self._forked:
            self._process = await ForkedProcess.start(*command, env=self._env, cwd=self._source)
        else:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command), env=self._env, cwd=self._source, stderr=asyncio.subprocess.PIPE
            )
        self._reader = asyncio.create_task(self._read())
        self.grpc_address = (await self.logged("gRPC listening"))["address"]
        self.http_address = (await self.logged("HTTP listening"))["address"]
        await self.logged("ossa-registry serves")

    async def logged(self, event: str, timeout_seconds: float = START_TIMEOUT_SECONDS) -> dict[str, Any]:
        """Wait until an event is logged and return its first record."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                for line in self.log:
                    if line.get("event") == event:
                        return line
                if self._reader is None or self._reader.done():
                    raise AssertionError(f"the server exited without logging {event!r}: {self.log}")
                self._news.clear()
                await self._news.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, timeout_seconds: float = 20.0) -> int:
        """Wait for the process to exit and return its exit code."""
        assert self._process is not None
        async with asyncio.timeout(timeout_seconds):
            code = await self._process.wait()
        if self._reader is not None:
            await self._reader
        return code

    async def stop(self) -> int:
        """Stop the server with SIGTERM, or with SIGKILL if it does not exit in time. Return the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        try:
            return await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.wait()

    async def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode(errors="replace").rstrip()})
            self._news.set()
        self._news.set()

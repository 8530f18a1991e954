"""``Supervisor``: starts workers, replaces those that die, restarts them one by one, drains them together."""

import asyncio
import itertools
import json
import pickle
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from registry_server import __version__
from registry_server.config import EMBEDDED, RedisUrl, Settings
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.logs import configure_logging
from registry_server.process import ROLL_SIGNAL, run_loop, stop_on_signals
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.runtime.tasks import first_error
from registry_server.store.embedded import EmbeddedRedis
from registry_server.workers import messages
from registry_server.workers.messages import COLLECTED, TELL, Message, Setup
from registry_server.workers.ports import reserved

_WORKER: Final = "registry_server.workers.worker"
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks whether a worker still speaks, which it does each second."""
_DEAF: Final = 30
"""Looks without a word of a worker in between, after which it is replaced: its port still gets connections."""
_FAREWELL: Final = 5.0
"""Seconds beyond the grace of calls that a worker has until it is killed."""
_TELL_WITHIN: Final = 2.0
"""Seconds that a worker has to tell its metrics; then they come without it."""

log = structlog.get_logger(__name__)


def run_workers(settings: Settings) -> None:
    """Serves with several processes until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: It cannot be served as it is configured.
    """
    configure_logging(settings.log)
    run_loop(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    async with AsyncExitStack() as stack:
        grpc = stack.enter_context(reserved("grpc.address", settings.grpc.address))
        http = stack.enter_context(reserved("http.address", settings.http.address))
        redis = settings.redis
        if redis.url.get_secret_value() == EMBEDDED:
            embedded = await stack.enter_async_context(EmbeddedRedis(settings.data_dir))
            log.info("embedded Redis started", version=embedded.version, data_dir=str(settings.data_dir))
            redis = redis.model_copy(update={"url": RedisUrl(embedded.url)})
        supervisor = Supervisor(
            settings.model_copy(
                update={
                    "redis": redis,
                    "grpc": settings.grpc.model_copy(update={"address": grpc}),
                    "http": settings.http.model_copy(update={"address": http}),
                }
            )
        )
        log.info("gRPC listening", address=grpc, reflection=settings.grpc.reflection)
        log.info("HTTP listening", address=http, health=f"http://{http}/health")
        failure: BaseException | None = None
        try:
            await supervisor.run(stop)
            log.info("stopped")
        except* ConfigurationError as group:
            failure = first_error(group)
        if failure is not None:
            raise failure


class Supervisor:
    """Keeps so many workers running as the settings say, until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        """Prepares it; the addresses in ``settings`` have ports, which are ours."""
        self._settings = settings
        self._workers = [_Worker(number, settings, self._collect) for number in range(1, settings.workers + 1)]

    async def run(self, stop: asyncio.Event) -> None:
        """Runs workers until ``stop`` is set, then drains them.

        Raises:
            ConfigurationError: They cannot serve as they are configured; within an ``ExceptionGroup``.
        """
        loop, roll = asyncio.get_running_loop(), asyncio.Event()
        if self._settings.security.policy_file is not None:
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(ROLL_SIGNAL, roll.set)
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(worker.keep(), name=f"worker-{worker.number}") for worker in self._workers]
            announcing = group.create_task(self._announce(), name="announce")
            rolling = group.create_task(self._restart_one_by_one(roll), name="rolling-restart")
            await stop.wait()
            announcing.cancel()
            rolling.cancel()
            grace = self._settings.shutdown.grace_seconds
            log.info("draining", grace_seconds=grace)
            for worker in self._workers:
                worker.drain()
            await asyncio.wait(keeping, timeout=grace + _FAREWELL)
            for worker in self._workers:
                worker.kill()

    async def _collect(self) -> list[str]:
        """The metrics of all workers that tell them in time."""
        texts = await asyncio.gather(*(worker.metrics() for worker in self._workers))
        return [text for text in texts if text is not None]

    def _reload(self) -> None:
        for worker in self._workers:
            worker.reload()

    async def _restart_one_by_one(self, wanted: asyncio.Event) -> None:
        """Restarts all workers whenever that is wanted, each once the one before serves again."""
        while True:
            await wanted.wait()
            wanted.clear()  # wanted again meanwhile, it begins again afterwards
            log.info("restarting the workers one after the other", workers=len(self._workers))
            for worker in self._workers:
                await worker.restart(self._settings.shutdown.grace_seconds + _FAREWELL)
            log.info("all workers restarted", workers=len(self._workers))

    async def _announce(self) -> None:
        for worker in self._workers:
            await worker.ready.wait()
        log.info("ossa-registry is serving", version=__version__, workers=len(self._workers))


class _Worker:
    """One worker after the other, under one number."""

    def __init__(self, number: int, settings: Settings, collect: Callable[[], Awaitable[list[str]]]) -> None:
        self.number = number
        self.ready = asyncio.Event()
        """Set once one of them serves."""
        self._setup = Setup(number, settings)
        self._draining = False
        self._renewed: asyncio.Future[None] | None = None  # once another one serves than the one that runs now
        self._process: asyncio.subprocess.Process | None = None
        self._looks = 0  # since it last said something
        self._collect = collect
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._ids = itertools.count()

    async def keep(self) -> None:
        """Keeps one running until it was drained.

        Raises:
            ConfigurationError: It cannot serve as it is configured, and never could.
        """
        delay = _FIRST_RETRY
        while not self._draining:
            started = time.monotonic()
            code = await self._run_one()
            if self._draining:
                return
            if code == 0:  # somebody ended it with SIGTERM, to have a fresh one
                log.info("worker drained, starting a replacement", worker=self.number)
                continue
            delay = _FIRST_RETRY if time.monotonic() - started > _LAST_RETRY else min(2 * delay, _LAST_RETRY)
            log.error("worker exited, starting a replacement", worker=self.number, code=code, seconds=delay)
            await asyncio.sleep(delay)

    async def metrics(self) -> str | None:
        """Asks it for its metrics; ``None`` if it does not tell them in time."""
        if self._writer is None:
            return None
        number = next(self._ids)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._say({"kind": TELL, "id": number})
        try:
            async with asyncio.timeout(_TELL_WITHIN):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def drain(self) -> None:
        """Lets it finish what is under way and end."""
        self._draining = True
        self._signal(signal.SIGTERM)

    async def restart(self, patience: float) -> None:
        """Has it drain, and waits until the next one serves; ``patience`` is how many seconds it has for the former."""
        process = self._process
        renewed = self._renewed = asyncio.get_running_loop().create_future()
        self._signal(signal.SIGTERM)
        if process is not None:
            try:
                async with asyncio.timeout(patience):
                    await process.wait()
            except TimeoutError:
                self.kill()
        await renewed

    def reload(self) -> None:
        """Has it read its policy again."""
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        """Ends it, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            log.warning("a worker did not end in time and is killed", worker=self.number)
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _run_one(self) -> int:
        """Runs a worker until it ends; gives its exit code. It ends when its connection does."""
        renewed, (ours, theirs) = self._renewed, socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", _WORKER, str(theirs.fileno())), pass_fds=[theirs.fileno()]
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            writer.write(encode_frame(pickle.dumps(self._setup)))
            self._writer = writer
            if self._draining:  # it was too late for the signal
                self._signal(signal.SIGTERM)
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch())
                await self._listen(reader, group, renewed)
                watching.cancel()
            return await self._process.wait()
        finally:
            self._writer = None
            writer.close()
            self._signal(signal.SIGKILL)

    def _say(self, message: Message) -> None:
        if self._writer is not None:
            self._writer.write(encode_frame(json.dumps(message).encode()))

    async def _answer(self, number: int) -> None:
        self._say({"kind": COLLECTED, "id": number, "texts": await self._collect()})

    async def _listen(
        self, reader: asyncio.StreamReader, group: asyncio.TaskGroup, renewed: asyncio.Future[None] | None
    ) -> None:
        """Takes what it says, until it ends."""
        while (frame := await read_frame(reader)) is not None:
            self._looks = 0
            message: Message = json.loads(frame)
            match message["kind"]:
                case messages.READY:
                    self.ready.set()
                    if renewed is not None and not renewed.done():
                        renewed.set_result(None)
                case messages.REFUSED if not self.ready.is_set():
                    raise ConfigurationError(message["why"])
                case messages.REFUSED:
                    log.error("a worker cannot serve as it is configured", worker=self.number, why=message["why"])
                case messages.COLLECT:
                    group.create_task(self._answer(message["id"]))
                case messages.TOLD if (answer := self._asked.get(message["id"])) and not answer.done():
                    answer.set_result(message["text"])

    async def _watch(self) -> None:
        """Ends a worker that does not speak."""
        self._looks = 0
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self._looks += 1  # they stand still when this process does
            if self._looks >= _DEAF:
                log.error("a worker does not speak and is killed", worker=self.number)
                self._signal(signal.SIGKILL)
                return

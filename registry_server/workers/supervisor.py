"""``Supervisor``: starts workers, replaces those that exit, restarts them one by one and drains them together."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import structlog

from registry_server import __version__
from registry_server.config import EMBEDDED, RedisUrl, Settings
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.logs import configure_logging
from registry_server.process import ROLL_SIGNAL, stop_on_signals
from registry_server.runtime.child import Child, RestartBackoff, SilenceWatch, running_child
from registry_server.runtime.connection import Connection, PendingAnswers
from registry_server.runtime.tasks import first_error, run_loop
from registry_server.store.embedded import EmbeddedRedis
from registry_server.workers import messages
from registry_server.workers.messages import Setup
from registry_server.workers.ports import reserve_port

_WORKER: Final = "registry_server.workers.worker"
_EXIT_SECONDS: Final = 5.0
"""Time in addition to the grace period for calls after which a draining worker is killed."""
_METRICS_TIMEOUT_SECONDS: Final = 2.0
"""Time for one worker's metrics, after which a scrape omits them."""
_MAX_REFUSED_SECONDS: Final = 60.0
"""Longest delay before the next start of a worker that cannot start: an operator must act first."""

log = structlog.get_logger(__name__)


def run_workers(settings: Settings) -> None:
    """Serve with several processes until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: The workers cannot start with these settings.
    """
    configure_logging(settings.log.level, settings.log.format, settings.log.audit)
    run_loop(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = stop_on_signals(signal.SIGTERM, signal.SIGINT)
    async with AsyncExitStack() as stack:
        grpc = stack.enter_context(reserve_port("grpc.address", settings.grpc.address))
        http = stack.enter_context(reserve_port("http.address", settings.http.address))
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
        with first_error(ConfigurationError):
            await supervisor.run(stop)
        log.info("stopped")


class Supervisor:
    """Keeps the configured number of workers running until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        """Create a supervisor; nothing runs yet.

        Args:
            settings: Settings of all workers; the addresses have actual ports, which the caller has reserved.
        """
        self._settings = settings
        served = asyncio.Event()
        numbers = range(1, settings.workers + 1)
        self._workers = [_Worker(number, settings, self._collect_metrics, served) for number in numbers]

    async def run(self, stop: asyncio.Event) -> None:
        """Run workers until ``stop`` is set, then drain them.

        Raises:
            ConfigurationError: The workers cannot start with these settings; inside an ``ExceptionGroup``.
        """
        loop, restart_requested = asyncio.get_running_loop(), asyncio.Event()
        if self._settings.security.policy_file is not None:
            loop.add_signal_handler(signal.SIGHUP, self._signal_all, signal.SIGHUP)
        loop.add_signal_handler(ROLL_SIGNAL, restart_requested.set)
        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(worker.keep_running(), name=f"worker-{worker.number}")
            announcing = group.create_task(self._announce(), name="announce")
            rolling = group.create_task(self._restart_one_by_one(restart_requested), name="rolling-restart")
            await stop.wait()
            announcing.cancel()
            rolling.cancel()
            log.info("draining", grace_seconds=self._settings.shutdown.grace_seconds)
            await asyncio.gather(*(worker.drain() for worker in self._workers))

    async def _collect_metrics(self) -> list[str]:
        """Return the metrics of all workers that answer in time."""
        texts = await asyncio.gather(*(worker.fetch_metrics() for worker in self._workers))
        return [text for text in texts if text is not None]

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.send_signal(number)

    async def _restart_one_by_one(self, requested: asyncio.Event) -> None:
        """Restart all workers on request, each after the previous one serves again."""
        while True:
            await requested.wait()
            requested.clear()  # a request during the restart starts another one afterwards
            log.info("restarting workers one by one", workers=len(self._workers))
            for worker in self._workers:
                await worker.restart()
            log.info("all workers restarted", workers=len(self._workers))

    async def _announce(self) -> None:
        for worker in self._workers:
            await worker.ready.wait()
        log.info("ossa-registry serves", version=__version__, workers=len(self._workers))


class _Worker:
    """The process with one worker number, and its successors."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        collect_metrics: Callable[[], Awaitable[list[str]]],
        served: asyncio.Event,
    ) -> None:
        self.number = number
        self._served = served  # set once any worker has served
        self.max_silent_checks = 30
        """Checks, one a second, without a frame after which it is killed: the kernel still sends it connections."""
        self.ready = asyncio.Event()
        """Set once a process with this number has served."""
        self._setup = Setup(number, settings)
        self._draining = False
        self._wake = asyncio.Event()  # ends the delay before the next start
        self._refusal = ""  # why the process cannot start, while it cannot
        self._replaced: asyncio.Future[None] | None = None  # resolved once the successor serves
        self._child: Child | None = None
        self._collect_metrics = collect_metrics
        self._metrics = PendingAnswers[str]()

    async def keep_running(self) -> None:
        """Keep a process running until it was drained.

        Raises:
            ConfigurationError: It cannot start with these settings, and no worker has served yet.
        """
        backoff, refused_backoff = RestartBackoff(), RestartBackoff(max_seconds=_MAX_REFUSED_SECONDS)
        while not self._draining:
            backoff.start()
            refused_backoff.start()
            code = await self._run_one()
            if self._draining:
                return
            if code == 0:  # it received SIGTERM from an operator or from a rolling restart
                log.info("worker drained, starting a replacement", worker=self.number)
                continue
            if code == messages.EXIT_CONFIGURATION_ERROR:  # logged once
                delay = refused_backoff.next_delay()
            else:
                delay = backoff.next_delay()
                log.error("worker exited, starting a replacement", worker=self.number, code=code, seconds=delay)
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def fetch_metrics(self) -> str | None:
        """Return the metrics of the process; ``None`` if it does not answer in time."""
        if self._child is None:
            return None
        connection = self._child.connection
        return await self._metrics.request(
            lambda number: connection.send_json([messages.GET_METRICS, number]), _METRICS_TIMEOUT_SECONDS
        )

    async def drain(self) -> None:
        """Stop the process; it is not replaced."""
        self._draining = True
        self._wake.set()
        await self._stop_process()

    async def restart(self) -> None:
        """Stop the process, and wait until its successor serves."""
        replaced = self._replaced = asyncio.get_running_loop().create_future()
        self._wake.set()
        await self._stop_process()
        await replaced

    async def _stop_process(self) -> None:
        """Let the process finish its calls and exit; kill it if it does not exit in time."""
        child = self._child
        if child is None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._setup.settings.shutdown.grace_seconds + _EXIT_SECONDS):
                await child.process.wait()
        except TimeoutError:
            log.warning("killing worker that did not exit in time", worker=self.number)
            child.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if one is running."""
        if self._child is not None:
            self._child.send_signal(number)

    async def _run_one(self) -> int:
        """Run a process until it exits and return its exit code. The process stops when its connection closes."""
        async with running_child(_WORKER, self._setup) as child:
            self._child, replaced = child, self._replaced
            try:
                if self._draining:  # drain() was called before the process existed
                    child.send_signal(signal.SIGTERM)
                async with asyncio.TaskGroup() as group:
                    watching = group.create_task(self._kill_if_silent(child))
                    await self._handle_messages(child.connection, group, replaced)
                    watching.cancel()
                return await child.process.wait()
            finally:
                self._child = None
                self._metrics.abandon()

    async def _handle_messages(
        self, connection: Connection, group: asyncio.TaskGroup, replaced: asyncio.Future[None] | None
    ) -> None:
        """Handle the messages of the process until it closes its connection."""

        async def send_all_metrics(number: int) -> None:
            connection.send_json([messages.METRICS, number, await self._collect_metrics()])

        async for frame in connection:
            message: list[Any] = json.loads(frame)
            match message:
                case [messages.READY]:
                    self.ready.set()
                    self._served.set()
                    self._refusal = ""
                    if replaced is not None and not replaced.done():
                        replaced.set_result(None)
                case [messages.CONFIGURATION_ERROR, error] if not self._served.is_set():
                    raise ConfigurationError(error)
                case [messages.CONFIGURATION_ERROR, error]:
                    if error != self._refusal:
                        log.error("worker cannot start with these settings", worker=self.number, reason=error)
                    self._refusal = error
                case [messages.GET_METRICS, number]:
                    group.create_task(send_all_metrics(number))
                case [messages.METRICS, number, text]:
                    self._metrics.resolve(number, text)

    async def _kill_if_silent(self, child: Child) -> None:
        """Kill the process when it has sent no message for too long."""
        silence = SilenceWatch()
        silence.observe(child.connection)
        while await silence.next_check() < self.max_silent_checks:
            pass
        log.error("killing silent worker", worker=self.number)
        child.send_signal(signal.SIGKILL)

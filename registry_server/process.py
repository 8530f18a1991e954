"""One serving process: event loop, signals, and serving until stopped."""

import asyncio
import gc
import signal
from collections.abc import Callable
from typing import Final

import structlog

from registry_server import __version__
from registry_server.app import WorkerContext, serving
from registry_server.config import Settings
from registry_server.instrumentation.logs import configure_logging
from registry_server.runtime.open_files import raise_open_files_limit
from registry_server.runtime.scheduling import adapt_scheduling
from registry_server.runtime.tasks import cancel, run_loop

ROLL_SIGNAL: Final = signal.SIGUSR2
"""Restarts the workers one by one, as in HAProxy. SIGHUP only reloads the policy, which closes no connection."""
_GC_THRESHOLDS: Final = (50_000, 20, 50)
"""An event that wakes thousands of streams allocates as many objects. With Python's default thresholds the collector
ran several times for each event and took a seventh of its time. It frees only reference cycles, which are rare here."""

log = structlog.get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: The server cannot start with these settings.
    """
    configure_logging(settings.log.level, settings.log.format, settings.log.audit)
    run_loop(_serve(settings))


def stop_on_signals(*signals: signal.Signals) -> asyncio.Event:
    """Return an event that the first of these signals sets; a second one ends the process immediately."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, begin_stop)
    return stop


async def serve_until(
    stop: asyncio.Event,
    settings: Settings,
    *,
    on_ready: Callable[[], None],
    worker: WorkerContext | None = None,
) -> None:
    """Serve until stopped, then drain.

    Args:
        stop: Set by the caller to stop the server.
        settings: All settings.
        on_ready: Called once the listeners accept calls and the catalog is loaded.
        worker: Set if other processes listen on the same ports.

    Raises:
        ConfigurationError: The server cannot start with these settings.
    """
    gc.set_threshold(*_GC_THRESHOLDS)
    raise_open_files_limit()
    scheduling = asyncio.create_task(adapt_scheduling(), name="scheduling")
    try:
        async with serving(settings, worker=worker) as server:
            # Without a policy SIGHUP keeps its default: a closed terminal ends the server like any program.
            if settings.security.policy_file is not None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.guard.reload)
            ready = asyncio.create_task(_call_after(server.parts.loaded, on_ready), name="ready")
            try:
                await stop.wait()
            finally:
                ready.cancel()
            log.info("draining", grace_seconds=settings.shutdown.grace_seconds)
        log.info("stopped")
    finally:
        await cancel([scheduling])


async def _serve(settings: Settings) -> None:
    def announce() -> None:
        log.info("ossa-registry serves", version=__version__)

    def reject_roll() -> None:
        log.warning("rolling restart ignored: there are no workers; restart this process or set workers above 1")

    asyncio.get_running_loop().add_signal_handler(ROLL_SIGNAL, reject_roll)
    await serve_until(stop_on_signals(signal.SIGTERM, signal.SIGINT), settings, on_ready=announce)


async def _call_after(event: asyncio.Event, function: Callable[[], None]) -> None:
    await event.wait()
    function()

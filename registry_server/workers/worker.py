"""``Worker``: the process that ``Supervisor`` starts as ``python -m registry_server.workers.worker FD``."""

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

from registry_server.app import WorkerContext
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.logs import configure_logging
from registry_server.process import ROLL_SIGNAL, serve_until, stop_on_signals
from registry_server.runtime.child import serve_child
from registry_server.runtime.connection import Connection, PendingAnswers
from registry_server.runtime.tasks import cancel
from registry_server.telemetry.merging import merge_metrics
from registry_server.workers import messages

if TYPE_CHECKING:
    from registry_server.app import MetricsText
    from registry_server.workers.messages import Setup

_COLLECT_TIMEOUT_SECONDS: Final = 5.0
"""Afterwards a scrape returns only the metrics of this worker."""


class Worker:
    """Serves until SIGTERM or until the supervisor closes the connection, and reports to the supervisor."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._own_metrics: MetricsText | None = None
        self._all_metrics = PendingAnswers[list[str]]()

    async def run(self, setup: "Setup") -> int:
        """Serve, and return the exit code of the process."""
        structlog.contextvars.bind_contextvars(worker=setup.number)
        stop = stop_on_signals(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(stop), name="supervisor")
        try:
            await serve_until(
                stop,
                setup.settings,
                on_ready=lambda: self._connection.send_json([messages.READY]),
                worker=WorkerContext(setup.number, self._join_metrics),
            )
        except ConfigurationError as error:
            self._connection.send_json([messages.CONFIGURATION_ERROR, str(error)])
            return messages.EXIT_CONFIGURATION_ERROR
        finally:
            await cancel([listening])
        return 0

    def _join_metrics(self, own: "MetricsText") -> "MetricsText":
        """Return a function that returns the metrics of all workers, which the supervisor collects."""
        self._own_metrics = own

        async def all_metrics() -> bytes:
            texts = await self._all_metrics.request(
                lambda number: self._connection.send_json([messages.GET_METRICS, number]), _COLLECT_TIMEOUT_SECONDS
            )
            return await own() if texts is None else merge_metrics(texts)

        return all_metrics

    async def _listen(self, stop: asyncio.Event) -> None:
        try:
            async for frame in self._connection:
                message: list[Any] = json.loads(frame)
                match message:
                    case [messages.GET_METRICS, number] if self._own_metrics is not None:
                        text = (await self._own_metrics()).decode()
                        self._connection.send_json([messages.METRICS, number, text])
                    case [messages.METRICS, number, texts]:
                        self._all_metrics.resolve(number, texts)
        finally:
            stop.set()  # without this connection, no signal or message from the supervisor would stop this process


async def _main(connection: Connection, setup: "Setup") -> int:
    log = setup.settings.log
    configure_logging(log.level, log.format, log.audit)
    return await Worker(connection).run(setup)


def main() -> int | None:
    """Serve as configured by the supervisor."""
    # The supervisor forwards what a worker must handle.
    return serve_child(_main, ignored_signals=(signal.SIGINT, signal.SIGHUP, ROLL_SIGNAL))


if __name__ == "__main__":
    sys.exit(main())

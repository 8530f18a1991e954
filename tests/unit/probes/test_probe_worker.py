"""The worker, with a registry that does not read its results."""

import asyncio
import json
import socket
import time

import pytest

from registry_server.config import HealthCheckSettings
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.probes.messages import WorkerCommands
from registry_server.probes.worker import Worker
from registry_server.runtime.connection import Connection
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service

pytestmark = pytest.mark.slow

TIMEOUT = 20.0


class FailingProber:
    """Fails every probe immediately, with a long error text."""

    def __init__(self) -> None:
        self.probes = 0

    async def send_probe(self, _: Plan) -> Outcome:
        self.probes += 1
        await asyncio.sleep(0)
        return Outcome(OutcomeKind.FAILED, 0.0, "x" * 1000)


async def test_worker_pauses_probing_while_its_results_are_not_read() -> None:
    """While the registry is paused, the number of results that wait for it is bounded."""
    ours, theirs = socket.socketpair()
    # It reads ahead as little as possible.
    registry = Connection(*await asyncio.open_unix_connection(sock=ours, limit=1))
    connection = await Connection.open(theirs)
    prober = FailingProber()
    worker = asyncio.create_task(Worker(prober.send_probe, connection, concurrency=100).run())
    try:
        plan = Plan.of(small_service("a"), HealthCheckSettings())._replace(interval=0.001)
        now = time.monotonic()
        registry.send_pickle(WorkerCommands([(i, plan, now) for i in range(100)], [], [], []))
        async with asyncio.timeout(TIMEOUT):
            before = -1
            while prober.probes != before or not before:
                before = prober.probes
                await asyncio.sleep(0.3)
            received = 0
            while received < 2 * before:
                received += len(json.loads(await anext(registry)))
        assert prober.probes > before
    finally:
        await cancel([worker])
        connection.close()
        registry.close()

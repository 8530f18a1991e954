"""The worker's side of the connection, with a parent that does not read."""

import asyncio
import json
import pickle
import socket
import time
from itertools import count

import pytest

from registry_server.config import HealthCheckSettings
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.probes.messages import Orders
from registry_server.probes.worker import Worker
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service

pytestmark = pytest.mark.slow

TIMEOUT = 20.0


class Prober:
    """Fails at once, at length."""

    def __init__(self) -> None:
        self.count = count()
        self.last = 0

    async def probe(self, _: Plan) -> Outcome:
        self.last = next(self.count)
        await asyncio.sleep(0)
        return Outcome(OutcomeKind.FAILED, 0.0, "x" * 1000)


async def test_a_worker_whose_parent_does_not_read_begins_no_more_probes_and_goes_on_with_it() -> None:
    """As while the registry stands still: what waits for it is bounded."""
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=theirs)
    reader, orders = await asyncio.open_unix_connection(sock=ours, limit=1)  # the least that it reads ahead
    worker_reader = asyncio.StreamReader()
    prober = Prober()
    worker = asyncio.create_task(Worker(prober, writer, concurrency=100).run(worker_reader))
    try:
        plan = Plan.of(small_service("a"), HealthCheckSettings())._replace(interval=0.001)
        now = time.monotonic()
        worker_reader.feed_data(encode_frame(pickle.dumps(Orders([(i, plan, now) for i in range(100)], [], []))))
        async with asyncio.timeout(TIMEOUT):
            before = -1
            while prober.last != before or not before:
                before = prober.last
                await asyncio.sleep(0.3)
            received = 0
            while received < 2 * before:
                frame = await read_frame(reader)
                assert frame is not None
                received += len(json.loads(frame))
        assert prober.last > before
    finally:
        await cancel([worker])
        writer.close()
        orders.close()

"""Probe results of many services stop the event loop for no longer than those of one."""

import asyncio
import time

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings
from registry_server.probes import Plan
from tests.grpc.test_turns import costly_service
from tests.support.redis_process import RedisProcess
from tests.support.stalls import MAX_TURN_SECONDS, measured_turns
from tests.unit.health.test_evaluator import FAILED, open_harness


@pytest.mark.slow
@pytest.mark.parametrize("in_maintenance", [False, True])
async def test_costly_services_that_fail_at_once_do_not_stop_the_event_loop(
    redis: RedisProcess, *, in_maintenance: bool
) -> None:
    async with open_harness(redis, self_preservation_min_failures=1_000) as harness:
        verdicts = []
        for name in map(str, range(30)):
            await harness.registry.register(Service.FromString(costly_service(name)))
            if in_maintenance:
                await harness.registry.set_maintenance(name, enabled=True)
            harness.evaluator.track_service(harness.record(name))
            plan = Plan.of(harness.record(name).message(), HealthCheckSettings(failure_threshold=1))
            harness.evaluator._connection_since = lambda _: 1
            verdicts.append(harness.evaluator.evaluate(harness.record(name), plan, FAILED, time.monotonic()))
        assert all(verdict.changes for verdict in verdicts)
        with measured_turns() as turns:  # Redis of a busy machine takes too long for some
            await asyncio.gather(*map(harness.evaluator.commit, verdicts), return_exceptions=True)
    assert turns.longest < MAX_TURN_SECONDS

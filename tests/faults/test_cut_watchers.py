import asyncio
import random

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.registry_service_pb2 import (
    DiscoverServicesRequest,
    RegisterServiceRequest,
    ReportServiceHealthRequest,
    UnregisterServiceRequest,
)
from ossa.registry.v1.service_pb2 import Capability, HealthStatus, Service, ServiceFilter
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, connected, running
from tests.support.watching import Subscriber, following

CHANGES = 4_000
CUTS = 100
WRITERS = 16
NAMES_PER_WRITER = 12
STATUSES = (
    HealthStatus.HEALTH_STATUS_HEALTHY,
    HealthStatus.HEALTH_STATUS_UNHEALTHY,
    HealthStatus.HEALTH_STATUS_DEGRADED,
    HealthStatus.HEALTH_STATUS_MAINTENANCE,
)
WANTED = (
    HealthStatus.HEALTH_STATUS_HEALTHY,
    HealthStatus.HEALTH_STATUS_DEGRADED,
    HealthStatus.HEALTH_STATUS_UNKNOWN,
)


class Writer:
    """Makes random changes to separate names, and maintains the expected state in a dict."""

    def __init__(self, server: Server, number: int, seed: int) -> None:
        self._stub = server.stub
        self._random = random.Random(f"{seed}/{number}")
        self._names = [f"agent-{number:02d}-{i:02d}" for i in range(NAMES_PER_WRITER)]
        self.model: dict[str, Service] = {}
        self.changes = 0

    async def change(self) -> None:
        name = self._random.choice(self._names)
        before = self.model.get(name)
        match self._random.random():
            case x if x < 0.2 and before is not None:
                await self._stub.UnregisterService(UnregisterServiceRequest(name=name))
                del self.model[name]
            case x if x < 0.5 and before is not None:
                status = self._random.choice([s for s in STATUSES if s != before.health.status])
                answer = await self._stub.ReportServiceHealth(ReportServiceHealthRequest(name=name, status=status))
                before.health.CopyFrom(answer.health)
            case _:
                self.changes += 1  # a new version, so that every registration is a change
                service = small_service(
                    name,
                    version=f"1.{self.changes}.0",
                    capabilities=[Capability(name=f"c-{self._random.randrange(3)}")],
                )
                response = await self._stub.RegisterService(RegisterServiceRequest(service=service))
                self.model[name] = response.service


async def test_watcher_disconnected_100_times_receives_every_revision_once(redis: RedisProcess) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    only_c1 = ServiceFilter(capability="c-1", health=WANTED)
    async with (
        running(redis.url) as server,
        connected(server.grpc_address) as (_, watching),
        following(watching) as everything,
        following(watching, only_c1) as some,
    ):
        writers = [Writer(server, number, seed) for number in range(WRITERS)]
        left = CHANGES

        async def write(writer: Writer) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await writer.change()

        async def cut(subscriber: Subscriber) -> None:
            at = sorted(rng.sample(range(CHANGES), CUTS))
            for changes in at:
                while CHANGES - left < changes and left > 0:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0.001)
                subscriber.cut()

        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(write(writer))
            group.create_task(cut(everything))
            group.create_task(cut(some))
        last = server.parts.registry.registry_health().revision
        await everything.reached(last)
        await some.reached(last)

        model = {name: service for writer in writers for name, service in writer.model.items()}
        assert [event.revision for event in everything.events] == list(range(1, last + 1))
        assert last == CHANGES
        assert _states(everything.state) == _states(model)
        expected = {
            name: service
            for name, service in model.items()
            if service.capabilities[0].name == "c-1" and service.health.status in WANTED
        }
        assert _states(some.state) == _states(expected)
        assert any(event.type == EventType.EVENT_TYPE_SERVICE_UNMATCHED for event in some.events)
        assert min(everything.streams, some.streams) > CUTS / 2
        found = await server.stub.DiscoverServices(DiscoverServicesRequest(page_size=1000))
        assert {service.name: service for service in found.services} == everything.state


def _states(services: dict[str, Service]) -> dict[str, tuple[str, int]]:
    return {name: (service.version, service.health.status) for name, service in services.items()}

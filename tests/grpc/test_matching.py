"""What callers leave behind, queries, watches and cursors with costly filters, stops the event loop for no one."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from tests.support.samples import small_service
from tests.support.server import Server
from tests.support.stalls import MAX_TURN_SECONDS, measured_turns

pytestmark = pytest.mark.slow

NAMES = ["".join(random.Random(i).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=100)) for i in range(250)]


def costly_pattern(number: int) -> str:
    """Return a pattern that RE2 needs 0.3 ms to match with a name of 100 characters."""
    return f"(?:[a-m].{{67}}|[n-z].{{68}}|[0-9].{{69}}|.{{3}}[a-d].{{57}})q{number}"


def batch(names: Sequence[str], version: str, **fields: object) -> pb.BatchRegisterServicesRequest:
    services: list[Service] = [small_service(name, version=version, endpoint="http://host", **fields) for name in names]
    return pb.BatchRegisterServicesRequest(services=services)


async def longest_turn_of_updates(server: Server, requests: Sequence[pb.BatchRegisterServicesRequest]) -> float:
    with measured_turns() as turns:
        for request in requests:
            answer = await server.stub.BatchRegisterServices(request, timeout=60)
            assert all(result.HasField("service") for result in answer.results)
    return turns.longest


UPDATES = [batch(NAMES, version) for version in ("1.0.0", "2.0.0")]


async def test_kept_queries_with_costly_patterns(server: Server) -> None:
    for i in range(512):
        await server.stub.DiscoverServices(
            pb.DiscoverServicesRequest(filter=ServiceFilter(name_pattern=costly_pattern(i)))
        )

    assert await longest_turn_of_updates(server, UPDATES) < MAX_TURN_SECONDS
    # The first use of a query pays for the changes since, in slices.
    with measured_turns() as turns:
        for i in range(5):
            query = pb.DiscoverServicesRequest(filter=ServiceFilter(name_pattern=costly_pattern(i)))
            await server.stub.DiscoverServices(query)
    assert turns.longest < MAX_TURN_SECONDS


async def open_watches(server: Server, filters: Sequence[ServiceFilter]) -> list[Any]:
    calls = [server.stub.WatchEvents(pb.WatchEventsRequest(filter=filter_)) for filter_ in filters]
    for call in calls:
        await call.read()
    return calls


async def test_watches_with_costly_patterns(server: Server) -> None:
    costly = await open_watches(server, [ServiceFilter(name_pattern=costly_pattern(i)) for i in range(300)])

    assert await longest_turn_of_updates(server, UPDATES) < MAX_TURN_SECONDS

    for call in costly:
        call.cancel()


async def test_watches_with_many_terms(server: Server) -> None:
    """Filters without a pattern are costly as well: each compares 64 tags with the 64 tags of a service."""
    tags = [f"tag-{i}" for i in range(64)]
    filters = [
        ServiceFilter(tags=[tags[0], *(f"none-{i}-{j}" for j in range(63))], version=f">={i}") for i in range(300)
    ]
    requests = [batch(NAMES, version, metadata={"tags": tags}) for version in ("1.0.0", "2.0.0")]
    costly = await open_watches(server, filters)

    assert await longest_turn_of_updates(server, requests) < MAX_TURN_SECONDS

    for call in costly:
        call.cancel()


async def test_replays_with_costly_patterns(server: Server) -> None:
    first = server.stub.WatchEvents(pb.WatchEventsRequest())
    message = await first.read()
    assert isinstance(message, pb.WatchEventsResponse)
    first.cancel()
    for request in UPDATES * 2:
        await server.stub.BatchRegisterServices(request)

    async def resume(number: int) -> None:
        filter_ = ServiceFilter(name_pattern=costly_pattern(number))
        call = server.stub.WatchEvents(pb.WatchEventsRequest(filter=filter_, cursor=message.cursor))
        await call.read()
        call.cancel()

    with measured_turns() as turns:
        await asyncio.gather(*map(resume, range(5)))
    assert turns.longest < MAX_TURN_SECONDS

"""``SearchServices`` through every front door."""

from typing import Any

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Health, Metadata, ServiceFilter
from tests.grpc.calls import HEALTHY, failure, register, register_all, unregister
from tests.support.samples import small_service
from tests.support.server import Server


async def search(server: Server, query: str, limit: int = 0, **fields: Any) -> pb.SearchServicesResponse:
    request = pb.SearchServicesRequest(query=query, limit=limit, filter=ServiceFilter(**fields))
    return await server.stub.SearchServices(request)


async def test_search_reads_its_own_writes(server: Server) -> None:
    metadata = Metadata(description="Translates contracts", environment="production")
    first, _ = await register_all(
        server,
        [
            small_service("polyglot", metadata=metadata, health=Health(status=HEALTHY)),
            small_service("weather", metadata=Metadata(description="Forecasts rain")),
        ],
    )
    found = await search(server, "translation of a contract")
    assert [result.service for result in found.results] == [first]
    assert (found.total_size, found.stale, found.revision >= first.revision) == (1, False, True)
    assert 0 < found.results[0].score <= 100
    assert not (await search(server, "translation", environment="staging")).results
    await register(server, small_service("weather", metadata=Metadata(description="Translates weather reports")))
    assert (await search(server, "translation", limit=1)).total_size == 2
    await unregister(server, "polyglot")
    assert [result.service.name for result in (await search(server, "translation")).results] == ["weather"]


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"query": ""}, ["query"]),
        ({"query": " - "}, ["query"]),
        ({"query": "x" * 257, "limit": 101}, ["query", "limit"]),
        ({"query": "x", "limit": -1, "filter": ServiceFilter(name_pattern="(")}, ["limit", "filter.name_pattern"]),
    ],
)
async def test_invalid_search_names_every_field(server: Server, fields: dict[str, Any], paths: list[str]) -> None:
    refused = await failure(server.stub.SearchServices(pb.SearchServicesRequest(**fields)))
    assert refused.fields == paths

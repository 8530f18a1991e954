from typing import Any

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.support.samples import example_service, small_service
from tests.support.server import Server


async def test_registered_service_is_found_by_its_capability(server: Server) -> None:
    registered = await server.stub.RegisterService(pb.RegisterServiceRequest(service=example_service()))

    request = pb.DiscoverServicesRequest()
    request.filter.capability = "text-analysis"
    found = await server.stub.DiscoverServices(request)

    assert list(found.services) == [registered.service]
    assert found.revision == registered.service.revision == 1


async def test_page_of_large_services_fits_the_message_limit_of_clients(server: Server) -> None:
    names = [f"large-{i:03}" for i in range(150)]
    for name in names:
        service = small_service(name)
        for i in range(10):
            service.capabilities.add(name=f"capability-{i}", description="x" * 4000)
        await server.stub.RegisterService(pb.RegisterServiceRequest(service=service))
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:  # accepts 4 MiB, the default
        stub = RegistryServiceStub(channel)
        found: list[str] = []
        pages = 0
        request = pb.DiscoverServicesRequest(page_size=1000)
        while pages == 0 or request.page_token:
            page = await stub.DiscoverServices(request)
            assert page.total_size == len(names)
            assert 0 < page.ByteSize() <= 4 << 20
            found += [service.name for service in page.services]
            request.page_token = page.next_page_token
            pages += 1
    assert found == names
    assert pages == 2


@pytest.mark.parametrize("length", [1, 2, 127, 128])
async def test_get_accepts_every_valid_encoding_of_its_request(server: Server, length: int) -> None:
    name = "a" * length
    registered = await server.stub.RegisterService(
        pb.RegisterServiceRequest(service=small_service(name, endpoint="http://a.test"))
    )
    short = pb.GetServiceRequest(name=name).SerializeToString()
    requests = (
        short,
        pb.GetServiceRequest(name=name, min_revision=1).SerializeToString(),
        pb.GetServiceRequest(name="b").SerializeToString() + short,  # the last value wins
        b"\x0a" + bytes([0x80 | length & 0x7F, length >> 7]) + name.encode(),  # a length with a redundant byte
        short + b"\x78\x01",  # an unknown field
    )
    channel: Any = server.channel
    call = channel.unary_unary("/ossa.registry.v1.RegistryService/GetService")
    for request in requests:
        assert pb.GetServiceResponse.FromString(await call(request)) == pb.GetServiceResponse(
            service=registered.service
        )

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.samples import seed_service
from tests.support.server import Server


async def test_a_registered_service_is_found_by_what_it_can_do(server: Server) -> None:
    registered = await server.stub.RegisterService(pb.RegisterServiceRequest(service=seed_service()))

    request = pb.DiscoverServicesRequest()
    request.filter.capability = "text-analysis"
    found = await server.stub.DiscoverServices(request)

    assert list(found.services) == [registered.service]
    assert found.revision == registered.service.revision == 1

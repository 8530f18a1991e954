"""Services that the benchmarks register, modelled on the example of the OSSA reference implementation."""

from collections.abc import Iterator

from google.protobuf.json_format import ParseDict

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest
from ossa.registry.v1.service_pb2 import HealthStatus, Service

_SCHEMA = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 5000}}, "required": ["text"]}
MATCHES = 50
"""Number of services that match one query, for any size of the fleet."""


def services(count: int) -> Iterator[Service]:
    """Yield a fleet in which ``query(i)`` matches 50 healthy services out of 100 with that capability."""
    template = ParseDict(
        {
            "version": "2.1.0",
            "capabilities": [
                {
                    "name": "?",
                    "version": "2.0.0",
                    "description": "Text analysis",
                    "inputs": _SCHEMA,
                    "outputs": _SCHEMA,
                },
                {"name": "translate", "version": "1.4.2", "inputs": _SCHEMA},
            ],
            "metadata": {"environment": "production", "labels": {"region": "eu", "tier": "gold"}},
            "ttl": "0s",
        },
        Service(),
    )
    for i in range(count):
        service = Service()
        service.CopyFrom(template)
        service.name = name_of(i)
        service.endpoint = f"https://{service.name}.example.com:8080"
        service.capabilities[0].name = f"capability-{i // (2 * MATCHES)}"
        service.metadata.tags.extend(["ai", f"team-{i % 7}"])
        service.health.status = HealthStatus.HEALTH_STATUS_HEALTHY if i % 2 else HealthStatus.HEALTH_STATUS_UNHEALTHY
        yield service


def name_of(i: int) -> str:
    """Return the name of a service of the fleet."""
    return f"agent-{i:07d}"


def query(capability: int) -> DiscoverServicesRequest:
    """Return a query for the healthy services with one capability and the tag common to all services."""
    request = DiscoverServicesRequest(page_size=MATCHES)
    request.filter.capability = f"capability-{capability}"
    request.filter.health.append(HealthStatus.HEALTH_STATUS_HEALTHY)
    request.filter.tags.append("ai")
    return request

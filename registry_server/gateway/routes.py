"""The REST API: decode, call, encode."""

from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from ossa_common.json_shape import STATUS_WORDS
from ossa_common.json_writer import message_document, time_text
from registry_server.errors import ServiceNotFound
from registry_server.gateway import bodies, preconditions
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import Envelope, encode_json
from registry_server.gateway.listing import Listing
from registry_server.gateway.middleware import REQUEST_ID
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import PAGE, Query, reject_parameters
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.document import health_document, service_document
from registry_server.registry import ServiceRegistry
from registry_server.security import permissions

BASE: Final = permissions.API


class Api:
    """One handler for each route below ``BASE``, except the event stream."""

    def __init__(
        self,
        registry: ServiceRegistry,
        envelope: Envelope,
        documents: Documents,
        *,
        max_body_bytes: int,
        body_timeout: float,
    ) -> None:
        self._registry = registry
        self._envelope = envelope
        self._documents = documents
        self._listing = Listing(registry, documents)
        self._max_body_bytes = max_body_bytes
        self._body_timeout = body_timeout

    @property
    def cache(self) -> CacheCounters:
        """Hits and misses of cached listings."""
        return self._listing.counters

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the route table."""
        return [
            web.post(f"{BASE}/services", self.register),
            web.get(f"{BASE}/services", self.discover),
            web.get(f"{BASE}/services/{{name}}", self.get),
            web.put(f"{BASE}/services/{{name}}", self.update),
            web.delete(f"{BASE}/services/{{name}}", self.unregister),
            web.get(f"{BASE}/services/{{name}}/health", self.service_health),
            web.post(f"{BASE}/services/{{name}}/heartbeat", self.heartbeat),
            web.get(f"{BASE}/health", self.registry_health),
            web.get(f"{BASE}/stats", self.stats),
            web.get(f"{BASE}/capabilities", self.capabilities),
            web.post(f"{BASE}/cleanup", self.cleanup),
        ]

    async def register(self, request: web.Request) -> web.Response:
        """Register a service, or replace its content."""
        query = Query(request.query, ("createOnly",))
        create_only = query.flag("createOnly")
        query.check()
        document = await bodies.read_json(request, self._max_body_bytes, self._body_timeout)
        service = bodies.parse_registration(document)
        with rest_names():
            registered = await self._registry.register(service, create_only=create_only)
        headers = {
            "ETag": preconditions.etag(registered.revision),
            "Location": f"{BASE}/services/{registered.name}",
        }
        return self._success(request, service_document(registered), status=201, headers=headers)

    async def discover(self, request: web.Request) -> web.Response:
        """Return the services that match the query."""
        query_string = request.rel_url.raw_query_string
        data = self._listing.cached_answer(query_string)
        if data is None:
            data = await self._listing.list_services(query_string, request.query)
        return self._envelope.success(data, request[REQUEST_ID])

    async def get(self, request: web.Request) -> web.Response:
        """Return a service."""
        reject_parameters(request.query)
        record = await self._registry.get(request.match_info["name"])
        headers = {"ETag": preconditions.etag(record.revision), "Cache-Control": "no-cache"}
        if preconditions.is_current(request, record.revision):
            return web.Response(status=304, headers=headers)
        return self._envelope.success(self._documents.encoded(record), request[REQUEST_ID], headers=headers)

    async def update(self, request: web.Request) -> web.Response:
        """Update the fields in the body."""
        reject_parameters(request.query)
        name = request.match_info["name"]
        document = await bodies.read_json(request, self._max_body_bytes, self._body_timeout)
        service, mask = bodies.parse_update(document, name)
        expected = await preconditions.expected_revision(request, self._registry, name)
        with rest_names():
            updated = await self._registry.update_service(service, mask, expected_revision=expected)
        headers = {"ETag": preconditions.etag(updated.revision)}
        return self._success(request, service_document(updated), headers=headers)

    async def unregister(self, request: web.Request) -> web.Response:
        """Remove a service."""
        reject_parameters(request.query)
        name = request.match_info["name"]
        expected = await preconditions.expected_revision(request, self._registry, name)
        with rest_names():
            await self._registry.unregister(name, expected_revision=expected)
        return self._success(request, {"message": f"Service {name} unregistered"})

    async def service_health(self, request: web.Request) -> web.Response:
        """Return the newest health of a service and the end of its lease."""
        reject_parameters(request.query)
        health, lease_ends = await self._registry.health(request.match_info["name"])
        document = health_document(health)
        if lease_ends is not None:
            document["leaseExpiresAt"] = time_text(lease_ends)
        return self._success(request, document)

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Renew the lease of a service."""
        reject_parameters(request.query)
        name = request.match_info["name"]
        await self._registry.get(name)  # rejects an invalid name as ``name``, not as ``names[0]``
        _, unknown = await self._registry.heartbeat([name])
        if unknown:
            raise ServiceNotFound(name)
        return self._success(request, {"message": f"Lease of service {name} renewed"})

    async def registry_health(self, request: web.Request) -> web.Response:
        """Return the health of the registry."""
        reject_parameters(request.query)
        health = self._registry.registry_health()
        document = {
            "status": STATUS_WORDS.get(health.status, "unknown"),
            "timestamp": time_text(health.checked_at),
            "statistics": message_document(health.stats),
        }
        return self._success(request, document)

    async def stats(self, request: web.Request) -> web.Response:
        """Return counts of the registered services."""
        reject_parameters(request.query)
        return self._success(request, message_document(self._registry.get_stats()))

    async def capabilities(self, request: web.Request) -> web.Response:
        """Return a page of the distinct capabilities."""
        query = Query(request.query, PAGE)
        size = query.page_size()
        query.check()
        with rest_names():
            page = self._registry.list_capabilities(size, query.text("pageToken"))
        document = {
            "capabilities": [message_document(summary) for summary in page.capabilities],
            "count": len(page.capabilities),
            "nextPageToken": page.next_page_token or None,
        }
        return self._success(request, document)

    async def cleanup(self, request: web.Request) -> web.Response:
        """Remove services whose lease has expired."""
        reject_parameters(request.query)
        names = await self._registry.cleanup()
        return self._success(request, {"message": "Cleanup completed", "servicesRemoved": len(names)})

    def _success(
        self, request: web.Request, document: Any, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> web.Response:
        return self._envelope.success(encode_json(document), request[REQUEST_ID], status, headers)

"""The HTTP API: the table of routes, and their handlers: decode, call, encode."""

import json
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, Lease, ListEventsRequest, RegistryStats
from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.json_shape import STATUS_WORDS
from ossa_common.json_writer import message_document, time_text
from registry_server.catalog import Hit
from registry_server.config import HttpSettings
from registry_server.errors import InstanceSuperseded, ServiceNotFound
from registry_server.gateway import bodies, preconditions
from registry_server.gateway.answers import Answer
from registry_server.gateway.compression import MIN_COMPRESSED_BYTES, accepts_gzip
from registry_server.gateway.docs import Assets, asset
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import Envelope, encode_json
from registry_server.gateway.events import EventStream
from registry_server.gateway.listing import Listing
from registry_server.gateway.middleware import HttpCall, Route
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import FILTERS, PAGE, Query, reject_parameters
from registry_server.gateway.sse import event_document
from registry_server.instrumentation.problems import Problems
from registry_server.model.document import encode_document, health_document, load_document
from registry_server.model.requests import MAX_SEARCH_LIMIT, check_search
from registry_server.model.validation import name_violations
from registry_server.registry import ServiceRegistry
from registry_server.security.permissions import DOCS, HEALTH, METRICS, OPERATE, READ, WRITE_OWN

BASE: Final = "/api/v1/registry"

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of the text format of Prometheus."""
_CACHED_STATS: Final = 64
_JSON_UTF8: Final = "application/json; charset=utf-8"


class Api:
    """One handler for each route, and the state that the handlers share."""

    def __init__(
        self,
        registry: ServiceRegistry,
        envelope: Envelope,
        settings: HttpSettings,
        metrics: Callable[[], Awaitable[bytes]],
        body_timeout: float,
        problems: Problems,
    ) -> None:
        """Create the handlers.

        Args:
            registry: The use cases.
            envelope: Builds answers.
            settings: Limits of requests.
            metrics: Returns the metrics of this process.
            body_timeout: Seconds within which a body must arrive.
            problems: Problems of the process.
        """
        self._problems = problems
        self._registry = registry
        self._envelope = envelope
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout = body_timeout
        self._metrics = metrics
        self._documents = Documents(registry.slices)
        self.listing = Listing(registry, self._documents)
        self._events = EventStream(registry, self._documents, keep_alive=settings.events_keep_alive_ms / 1000)
        self.assets = Assets()
        self.draining = False
        """Whether readiness fails, so that load balancers stop sending requests."""

    def end_streams(self) -> None:
        """End the open event streams; their clients reconnect."""
        self._events.end_streams()

    async def register(self, call: HttpCall) -> Answer:
        """Register a service, or replace its content."""
        query = Query(call.query, ("createOnly",))
        create_only = query.flag("createOnly")
        query.check()
        document = await bodies.read_json(call, self._max_body_bytes, self._body_timeout)
        service = bodies.parse_registration(document)
        await bodies.end_turn_if_large(service)
        with rest_names():
            registered = await self._registry.register(service, create_only=create_only)
        headers = {
            "ETag": preconditions.etag(registered.revision),
            "Location": f"{call.request.path.rstrip('/')}/{quote(registered.name, safe='@')}",
        }
        return self._envelope.success(encode_document(registered), call.request_id, 201, headers)

    async def discover(self, call: HttpCall) -> Answer:
        """Return the services that match the query."""
        page = self.listing.cached_page(call.query_string)
        if page is None:
            page = await self.listing.find_page(call.query_string, call.query)
        if len(page.json) >= MIN_COMPRESSED_BYTES and accepts_gzip(call.request):
            beginning = await self.listing.compress(page, call.query_string, call.middleware.compression)
            if beginning is not None:
                return self._envelope.compressed_success(beginning, call.request_id)
        return self._envelope.success(page.json, call.request_id)

    async def search(self, call: HttpCall) -> Answer:
        """Return the services that match a text, the best first."""
        query = Query(call.query, (*FILTERS, "q", "limit"), labels=True)
        filter_, text, limit = query.filter(), query.text("q"), query.number("limit", MAX_SEARCH_LIMIT)
        check_search(text, 0, "q", query.violations)
        query.check()
        found = await self._registry.search(text, filter_, limit)
        documents = await self._documents.encode_all([hit.record for hit in found.hits])
        results = [
            b"".join((b'{"service":', document, b",", encode_json(_relevance(hit))[1:]))
            for hit, document in zip(found.hits, documents, strict=True)
        ]
        tail = encode_json({"total": found.total, "revision": found.revision, "stale": found.stale})
        return self._envelope.success(b"".join((b'{"results":[', b",".join(results), b"],", tail[1:])), call.request_id)

    async def explain(self, call: HttpCall) -> Answer:
        """Explain why the query matches no services, or not the one named in ``for``."""
        query = Query(call.query, (*FILTERS, "for"), labels=True)
        filter_, name = query.filter(), query.text("for")
        query.violations += name_violations(name, "for") if name else []
        query.check()
        explanation = await self._registry.explain(filter_, name)
        data: list[bytes] = []

        def encode() -> Iterator[None]:
            yield  # as in Documents: the service of an event may take all of a slice
            data.append(encode_json(message_document(explanation)))

        await self._registry.slices.run(encode())
        return self._envelope.success(data[0], call.request_id)

    async def history(self, call: HttpCall) -> Answer:
        """Return a page of past events."""
        query = Query(call.query, ("name", "since", *PAGE))
        request = ListEventsRequest(
            name=query.text("name"),
            since=query.time("since"),
            page_size=query.page_size(),
            page_token=query.text("pageToken"),
        )
        query.check()
        with rest_names():
            page = await self._registry.list_events(request)
        events: list[bytes] = []

        def encode_events() -> Iterator[None]:
            for event in page.events:
                events.append(event_document(event, self._documents))
                yield

        await self._registry.slices.run(encode_events())
        tail = encode_json({"nextPageToken": page.next_page_token or None, "oldestRevision": page.oldest_revision})
        data = b"".join((b'{"events":[', b",".join(events), b"],", tail[1:]))
        return self._envelope.success(data, call.request_id)

    async def get(self, call: HttpCall) -> Answer:
        """Return a service."""
        reject_parameters(call.query)
        record = await self._registry.get(call.name)
        headers = {"ETag": preconditions.etag(record.revision), "Cache-Control": "no-cache"}
        if preconditions.is_current(call.request, record.revision):
            return Answer(status=304, headers=headers)
        return self._envelope.success(await self._documents.encode(record), call.request_id, headers=headers)

    async def update(self, call: HttpCall) -> Answer:
        """Update the fields in the body, and renew the lease."""
        reject_parameters(call.query)
        name = call.name
        document = await bodies.read_json(call, self._max_body_bytes, self._body_timeout)
        service, mask = bodies.parse_update(document, name)
        await bodies.end_turn_if_large(service)
        expected = await preconditions.expected_revision(call.request, self._registry, name)
        with rest_names():
            updated = await self._registry.update_service(service, mask, expected_revision=expected, renew=True)
        headers = {"ETag": preconditions.etag(updated.revision)}
        return self._envelope.success(encode_document(updated), call.request_id, headers=headers)

    async def unregister(self, call: HttpCall) -> Answer:
        """Remove a service."""
        query = Query(call.query, ("instanceId",))
        query.check()
        name = call.name
        expected = await preconditions.expected_revision(call.request, self._registry, name)
        with rest_names():
            await self._registry.unregister(name, expected_revision=expected, instance_id=query.text("instanceId"))
        return self._success(call, {"message": f"Service {name} unregistered"})

    async def service_health(self, call: HttpCall) -> Answer:
        """Return the newest health of a service and the end of its lease."""
        reject_parameters(call.query)
        name = call.name
        health, lease_ends, observed = await self._registry.newest_health(name)
        registered_at = (await self._registry.get(name)).message().registered_at
        document = health_document(health, registered_at)
        if lease_ends is not None:
            document["leaseExpiresAt"] = time_text(lease_ends)
        if (load := await self._registry.load(name)) is not None:
            document["load"] = load_document(load)
        if observed is not None and observed != health:
            document["observed"] = health_document(observed, registered_at)
        return self._success(call, document)

    async def set_maintenance(self, call: HttpCall) -> Answer:
        """Start or end the maintenance of a service."""
        reject_parameters(call.query)
        document = await bodies.read_json(call, self._max_body_bytes, self._body_timeout)
        request = bodies.parse_maintenance(document, call.name)
        service = await self._registry.set_maintenance(request.name, enabled=request.enabled, reason=request.reason)
        headers = {"ETag": preconditions.etag(service.revision)}
        return self._envelope.success(encode_document(service), call.request_id, headers=headers)

    async def heartbeat(self, call: HttpCall) -> Answer:
        """Renew the lease of a service."""
        reject_parameters(call.query)
        name = call.name
        lease = Lease(name=name)
        if call.request.body_exists:
            document = await bodies.read_json(call, self._max_body_bytes, self._body_timeout)
            bodies.parse_heartbeat(document, lease)
        await self._registry.get(name)  # rejects an invalid name as ``name``, not as ``leases[0].name``
        renewal = await self._registry.heartbeat((), [lease])
        if renewal.unknown:
            raise ServiceNotFound(name)
        if renewal.superseded:
            raise InstanceSuperseded(name)
        return self._success(call, {"message": f"Lease of service {name} renewed"})

    async def registry_health(self, call: HttpCall) -> Answer:
        """Return the health of the registry."""
        reject_parameters(call.query)
        status, counts = await self._registry.visible_status()
        head = f'{{"status":"{STATUS_WORDS[status]}","timestamp":"{self._envelope.now}","statistics":'
        data = b"".join((head.encode(), _encode_stats(counts.SerializeToString(deterministic=True)), b"}"))
        return self._envelope.success(data, call.request_id)

    async def stats(self, call: HttpCall) -> Answer:
        """Return counts of the registered services."""
        reject_parameters(call.query)
        stats = (await self._registry.visible_stats()).SerializeToString(deterministic=True)
        return self._envelope.success(_encode_stats(stats), call.request_id)

    async def capabilities(self, call: HttpCall) -> Answer:
        """Return a page of the distinct capabilities."""
        query = Query(call.query, PAGE)
        size = query.page_size()
        query.check()
        with rest_names():
            page = await self._registry.list_capabilities(size, query.text("pageToken"))
        document = {
            "capabilities": [_capability_document(summary) for summary in page.capabilities],
            "totalCapabilities": (await self._registry.visible_stats()).unique_capabilities,
            "nextPageToken": page.next_page_token or None,
        }
        return self._success(call, document)

    async def cleanup(self, call: HttpCall) -> Answer:
        """Remove services whose lease has expired."""
        reject_parameters(call.query)
        names = await self._registry.cleanup()
        return self._success(call, {"message": "Cleanup completed", "servicesRemoved": len(names)})

    async def events(self, call: HttpCall) -> web.StreamResponse:
        """Stream changes as Server-Sent Events."""
        return await self._events.stream(call)

    async def ready(self, _: HttpCall) -> Answer:
        """Report whether this process can serve, and its problems, if there are any."""
        status, _counts = await self._registry.visible_status()
        ready = status != HealthStatus.HEALTH_STATUS_UNHEALTHY and not self.draining
        problems = [{"key": key, "text": text} for key, text in self._problems.active.items()]
        document: dict[str, Any] = {"status": "unhealthy"}
        if ready:
            document["status"] = "degraded" if problems else STATUS_WORDS.get(status, "unknown")
        if problems:
            document["problems"] = problems
        return Answer(json.dumps(document).encode(), 200 if ready else 503, content_type=_JSON_UTF8)

    async def live(self, _: HttpCall) -> Answer:
        """Report that this process responds."""
        return Answer(b'{"status": "alive"}', content_type=_JSON_UTF8)

    async def metrics(self, _: HttpCall) -> Answer:
        """Return the metrics."""
        return Answer(await self._metrics(), content_type=METRICS_TYPE)

    def _success(
        self, call: HttpCall, document: Any, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> Answer:
        return self._envelope.success(encode_json(document), call.request_id, status, headers)


@lru_cache(maxsize=_CACHED_STATS)
def _encode_stats(wire: bytes) -> bytes:
    """Return the JSON of serialised statistics; cached, since thousands of answers may share them."""
    return encode_json(message_document(RegistryStats.FromString(wire)))


def _relevance(hit: Hit) -> dict[str, Any]:
    document: dict[str, Any] = {"score": hit.score, "matchedCapabilities": hit.capabilities}
    return document if hit.load is None else {**document, "load": load_document(hit.load)}


def _capability_document(summary: CapabilitySummary) -> dict[str, Any]:
    document = message_document(summary)
    return {"services" if key == "serviceNames" else key: value for key, value in document.items()}


ROUTES: Final = (
    Route("POST", f"{BASE}/services", Api.register, WRITE_OWN),
    Route("GET", f"{BASE}/services", Api.discover, READ),
    Route("GET", f"{BASE}/services/{{name}}", Api.get, READ),
    Route("PUT", f"{BASE}/services/{{name}}", Api.update, WRITE_OWN),
    Route("DELETE", f"{BASE}/services/{{name}}", Api.unregister, WRITE_OWN),
    Route("GET", f"{BASE}/services/{{name}}/health", Api.service_health, READ),
    Route("POST", f"{BASE}/services/{{name}}/heartbeat", Api.heartbeat, WRITE_OWN),
    Route("PUT", f"{BASE}/services/{{name}}/maintenance", Api.set_maintenance, OPERATE),
    Route("GET", f"{BASE}/health", Api.registry_health, READ),
    Route("GET", f"{BASE}/search", Api.search, READ),
    Route("GET", f"{BASE}/explain", Api.explain, READ),
    Route("GET", f"{BASE}/history", Api.history, READ),
    Route("GET", f"{BASE}/stats", Api.stats, READ),
    Route("GET", f"{BASE}/capabilities", Api.capabilities, READ),
    Route("POST", f"{BASE}/cleanup", Api.cleanup, OPERATE),
    # Event streams count as watches.
    Route("GET", f"{BASE}/events", Api.events, READ, limited=False, streams="watches"),
    # Monitoring must work under overload.
    Route("GET", "/health", Api.ready, HEALTH, limited=False),
    Route("GET", "/health/live", Api.live, HEALTH, limited=False),
    Route("GET", "/metrics", Api.metrics, METRICS, limited=False),
    Route("GET", "/openapi.yaml", asset("openapi.yaml", "application/yaml"), DOCS),
    Route("GET", "/docs", asset("assets/index.html", "text/html"), DOCS),
    Route("GET", "/docs/start.js", asset("assets/start.js", "text/javascript"), DOCS),
    Route("GET", "/docs/swagger-ui.css", asset("assets/swagger-ui.css", "text/css"), DOCS),
    Route("GET", "/docs/swagger-ui-bundle.js", asset("assets/swagger-ui-bundle.js", "text/javascript"), DOCS),
)
"""All routes of the HTTP server; HEAD is routed like GET."""

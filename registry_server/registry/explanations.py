"""``RegistryExplanations``: the use cases that explain: why a filter finds nothing, and what happened to a service."""

from typing import TYPE_CHECKING, Any

from ossa.registry.v1.registry_service_pb2 import ExplainDiscoveryResponse, ListEventsRequest
from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_server.catalog import Explanations, Hits, Loads, Search
from registry_server.model import requests, rules
from registry_server.model.filters import EVERYTHING, Filter, compile_filter
from registry_server.model.tokens import encode_page_token
from registry_server.model.validation import name_violations
from registry_server.registry.event_log import EventLog, EventPage, EventQuery
from registry_server.registry.reads import RegistryReads
from registry_server.security.identity import current_identity
from registry_server.store import StoreReader

if TYPE_CHECKING:
    from ossa_common.violations import Violation


class RegistryExplanations(RegistryReads):
    """Searches by text, explains why a filter matches nothing, or not a certain service, and lists past events."""

    def __init__(self, *, reader: StoreReader, loads: Loads, **parts: Any) -> None:
        """Combine the parts; ``parts`` are those of ``RegistryReads``."""
        super().__init__(**parts)
        self._event_log = EventLog(self._replica, reader, self.slices)
        self._explanations = Explanations(self._replica, self._discovery)
        self._loads = loads
        self._search = Search(self._replica, self._discovery, loads)

    async def search(self, text: str, filter_: ServiceFilter, limit: int = 0) -> Hits:
        """Return the services that match a text and a filter, the best first.

        Args:
            text: Words to find.
            filter_: Conditions that the services must meet.
            limit: Maximum number of services; 0 = the default.

        Raises:
            InvalidRequest: The text, the filter or the limit is not valid.
        """
        violations: list[Violation] = []
        requests.check_search(text, limit, "query", violations)
        compiled = current_identity.get().restrict(compile_filter(filter_, "filter", violations))
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        return await self._search.find(text, compiled, limit or requests.DEFAULT_SEARCH_LIMIT)

    async def explain(self, filter_: ServiceFilter, name: str = "") -> ExplainDiscoveryResponse:
        """Explain the result of a filter and, unless ``name`` is empty, whether that service is in it.

        Raises:
            InvalidRequest: The filter or the name is not valid.
        """
        violations = name_violations(name, "name") if name else []
        compile_filter(filter_, "filter", violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        return await self._explanations.explain(filter_, name, self._compile_valid)

    async def list_events(self, request: ListEventsRequest) -> EventPage:
        """Return a page of the events that are kept, newest first.

        Raises:
            InvalidRequest: A field is not valid.
            StoreUnavailable: The events are not in memory, and the store does not respond.
        """
        violations = name_violations(request.name, "name") if request.name else []
        size = requests.page_size(request.page_size, violations)
        rules.check_timestamp(request.since, "since", violations)
        identity = current_identity.get()
        query = ListEventsRequest(name=request.name, since=request.since)
        scope = b"events:" + identity.scope.encode() + query.SerializeToString(deterministic=True)
        before = requests.page_start(self._replica.secret, scope, request.page_token, violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        visible, since_ms = identity.restrict(EVERYTHING), request.since.ToMilliseconds()
        page = await self._event_log.read_page(
            EventQuery(filter=visible, name=request.name, since_ms=since_ms, size=size),
            int(before) if before else self._replica.revision + 1,
        )
        if page.next_revision:
            page.next_page_token = encode_page_token(self._replica.secret, scope, str(page.next_revision))
        return page

    def _compile_valid(self, filter_: ServiceFilter) -> Filter:
        return current_identity.get().restrict(compile_filter(filter_, "filter", []))

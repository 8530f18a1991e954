"""``GET /services``: answers cached until a change affects them."""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, DiscoverServicesResponse
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import encode_json
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import FILTERS, PAGE, Query
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.wire import split_leading_fields
from registry_server.registry import ServiceRegistry

_SERVICES_TAG: Final = 0x0A  # DiscoverServicesResponse.services: field 1, length-delimited
_SERVICES_PER_SLICE: Final = 50  # encoded without yielding to the event loop: about 2.5 ms if none is cached
_MAX_ANSWERS: Final = 512
_MAX_BYTES: Final = 32 << 20
_MAX_ANSWER_BYTES: Final = 8 << 20
_ENTRY_OVERHEAD_BYTES: Final = 500


class _Answer(NamedTuple):
    """A cached answer and its source."""

    request: bytes
    """The serialised ``DiscoverServicesRequest``."""
    page: bytes
    """The registry's answer; the cached JSON is valid while the registry still caches this same object."""
    data: bytes

    @property
    def size(self) -> int:
        """Approximate memory use, including the page, which the registry may have evicted."""
        return len(self.page) + len(self.data) + _ENTRY_OVERHEAD_BYTES


class Listing:
    """Caches the answers to ``GET /services`` by query string.

    The registry caches its answers and evicts those that a change affects. Each entry here is valid exactly as long as
    the registry's own, so it needs no invalidation and is never older.
    """

    def __init__(self, registry: ServiceRegistry, documents: Documents) -> None:
        self._registry = registry
        self._documents = documents
        self._answers: dict[str, _Answer] = {}
        self._bytes = 0
        self.counters = CacheCounters()

    def cached_answer(self, query_string: str) -> bytes | None:
        """Return the JSON of the cached answer to a query string, if there is one."""
        answer = self._answers.get(query_string)
        if answer is None or self._registry.cached_page(answer.request) is not answer.page:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return answer.data

    async def list_services(self, query_string: str, parameters: Mapping[str, str]) -> bytes:
        """Return the matching services.

        Args:
            query_string: The raw query string, key of the cache.
            parameters: Its decoded parameters.

        Returns:
            JSON: ``{"services","count","total","filter","nextPageToken"}``.

        Raises:
            InvalidRequest: A parameter is unknown, not valid or repeated.
        """
        query = Query(parameters, (*FILTERS, *PAGE), labels=True)
        request = DiscoverServicesRequest(
            filter=query.filter(), page_size=query.page_size(), page_token=query.text("pageToken")
        )
        query.check()
        wire = request.SerializeToString(deterministic=True)
        with rest_names():
            answer = await self._registry.discover_page(request, wire=wire)
        # No other task has run since: this is the cached form of that answer, or None if the registry did not cache it.
        page = self._registry.cached_page(wire)
        data = await self._encode_page(page or answer, query)
        if page is not None:
            self._store_answer(query_string, _Answer(wire, page, data))
        return data

    async def _encode_page(self, page: bytes, query: Query) -> bytes:
        services, rest = split_leading_fields(page, _SERVICES_TAG)
        documents: list[bytes] = []
        for start in range(0, len(services), _SERVICES_PER_SLICE):
            if start:
                await asyncio.sleep(0)
            documents += map(self._documents.encoded, services[start : start + _SERVICES_PER_SLICE])
        tail = DiscoverServicesResponse.FromString(rest)
        tail_json = encode_json(
            {
                "count": len(services),
                "total": tail.total_size,
                "filter": query.echo(),
                "nextPageToken": tail.next_page_token or None,
            }
        )
        return b"".join((b'{"services":[', b",".join(documents), b"],", tail_json[1:]))

    def _store_answer(self, query_string: str, answer: _Answer) -> None:
        self._evict(query_string)
        if answer.size > _MAX_ANSWER_BYTES:
            return
        self._answers[query_string] = answer
        self._bytes += answer.size
        while self._bytes > _MAX_BYTES or len(self._answers) > _MAX_ANSWERS:
            self._evict(next(iter(self._answers)))

    def _evict(self, query_string: str) -> None:
        dropped = self._answers.pop(query_string, None)
        if dropped is not None:
            self._bytes -= dropped.size

"""``GET /services``: answers kept until a change touches them."""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, DiscoverServicesResponse
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import encode
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import FILTERS, PAGE, Query
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.wire import split_frames
from registry_server.registry import ServiceRegistry

_SERVICES_TAG: Final = 0x0A  # DiscoverServicesResponse.services: field 1, length-delimited
_SLICE: Final = 50  # services between two looks at other tasks: about 2.5 ms if none of them is known yet
_MOST_ANSWERS: Final = 512
_MOST_BYTES: Final = 32 << 20
_LARGEST_KEPT: Final = 8 << 20
_ENTRY_BYTES: Final = 500  # what keeping one of them costs beside its bytes


class _Answer(NamedTuple):
    """An answer, and what it was made of."""

    request: bytes
    """The serialised ``DiscoverServicesRequest``."""
    page: bytes
    """The registry's answer to it; as long as the registry has this very object, the answer holds."""
    data: bytes

    @property
    def size(self) -> int:
        """About how many bytes it keeps in memory, with the page, which the registry may have dropped."""
        return len(self.page) + len(self.data) + _ENTRY_BYTES


class Listing:
    """Finds services by query strings.

    The registry keeps its answers and drops those that a change touches. What is kept here rests on them: it needs no
    notice of changes, and cannot be older than they are.
    """

    def __init__(self, registry: ServiceRegistry, documents: Documents) -> None:
        self._registry = registry
        self._documents = documents
        self._answers: dict[str, _Answer] = {}
        self._bytes = 0
        self.counters = CacheCounters()

    def ready(self, query_string: str) -> bytes | None:
        """Gives the JSON of the ready answer to a query string, if there is one."""
        answer = self._answers.get(query_string)
        if answer is None or self._registry.cached_page(answer.request) is not answer.page:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return answer.data

    async def find(self, query_string: str, parameters: Mapping[str, str]) -> bytes:
        """Finds services.

        Args:
            query_string: As it came, for ``ready``.
            parameters: What it means.

        Returns:
            JSON: ``{"services","count","total","filter","nextPageToken"}``.

        Raises:
            InvalidRequest: Parameters that are unknown, bad or given twice.
        """
        query = Query(parameters, (*FILTERS, *PAGE), labels=True)
        request = DiscoverServicesRequest(
            filter=query.filter(), page_size=query.page_size(), page_token=query.text("pageToken")
        )
        query.check()
        wire = request.SerializeToString(deterministic=True)
        with rest_names():
            answer = await self._registry.discover_page(request, wire=wire)
        # Nothing was awaited since: this is the page of that answer, or there is none that is kept.
        page = self._registry.cached_page(wire)
        data = await self._data(page or answer, query)
        if page is not None:
            self._keep(query_string, _Answer(wire, page, data))
        return data

    async def _data(self, page: bytes, query: Query) -> bytes:
        services, rest = split_frames(page, _SERVICES_TAG)
        documents: list[bytes] = []
        for start in range(0, len(services), _SLICE):
            if start:
                await asyncio.sleep(0)
            documents += map(self._documents.of, services[start : start + _SLICE])
        tail = DiscoverServicesResponse.FromString(rest)
        facts = encode(
            {
                "count": len(services),
                "total": tail.total_size,
                "filter": query.echo(),
                "nextPageToken": tail.next_page_token or None,
            }
        )
        return b"".join((b'{"services":[', b",".join(documents), b"],", facts[1:]))

    def _keep(self, query_string: str, answer: _Answer) -> None:
        self._drop(query_string)
        if answer.size > _LARGEST_KEPT:
            return
        self._answers[query_string] = answer
        self._bytes += answer.size
        while self._bytes > _MOST_BYTES or len(self._answers) > _MOST_ANSWERS:
            self._drop(next(iter(self._answers)))

    def _drop(self, query_string: str) -> None:
        dropped = self._answers.pop(query_string, None)
        if dropped is not None:
            self._bytes -= dropped.size

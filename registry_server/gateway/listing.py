"""``GET /services``: answers cached until a change affects them."""

from collections.abc import Mapping

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest
from registry_server.catalog import Page
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import encode_json
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import FILTERS, PAGE, Query
from registry_server.instrumentation.counters import CacheCounters
from registry_server.registry import ServiceRegistry


class Listing:
    """Answers ``GET /services``.

    The registry caches the JSON with the page that it was encoded from. Assembling 50 cached documents would add 0.1 ms
    to a request of 0.3 ms.
    """

    def __init__(self, registry: ServiceRegistry, documents: Documents) -> None:
        self._registry = registry
        self._documents = documents
        self.counters = CacheCounters()

    def cached_answer(self, query_string: str) -> bytes | None:
        """Return the JSON of the cached answer to a query string, if there is one."""
        page = self._registry.cached_page(query_string)
        if page is None:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        return page.json

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
        with rest_names():
            page = await self._registry.find_page(request)
        page.json = await self._encode_page(page, query)
        self._registry.keep_page(query_string, page)
        return page.json

    async def _encode_page(self, page: Page, query: Query) -> bytes:
        documents = await self._documents.encode_all(page.records)
        tail = encode_json(
            {
                "count": len(page.records),
                "total": page.total_size,
                "filter": query.echo(),
                "nextPageToken": page.next_page_token or None,
            }
        )
        return b"".join((b'{"services":[', b",".join(documents), b"],", tail[1:]))

"""``ExplanationCalls``: the RPCs that search, explain why a filter finds nothing, and list what happened."""

from datetime import datetime
from typing import Final, Unpack

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_client import values
from registry_client.calls import Caller
from registry_client.errors import RegistryError
from registry_client.resolve import Criteria

_EXPLANATION_SECONDS: Final = 0.5
"""How long an error waits for the explanation of the registry."""


class ExplanationCalls:
    """One method for each of these RPCs."""

    def __init__(self, caller: Caller) -> None:
        self._call = caller.call

    async def search_services(
        self,
        query: str,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        limit: int = 0,
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> pb.SearchServicesResponse:
        """Return the services that match a text, the best first: available ones before all others.

        Args:
            query: Words to find in names, descriptions, tags and capabilities.
            filter: Conditions that the services must meet; unset = all services.
            limit: Maximum number of results, up to 100; 0 = 10.
            timeout: Seconds for the call.
            **fields: Fields of the filter, such as ``environment="production"``.

        Raises:
            InvalidRequest: The query, the filter or the limit violates the contract.
        """
        request = pb.SearchServicesRequest(query=query, filter=values.make_filter(filter, fields), limit=limit)
        return await self._call(request, pb.SearchServicesResponse, timeout)

    async def explain_discovery(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        name: str = "",
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> pb.ExplainDiscoveryResponse:
        """Explain why a filter matches no services, or not a certain one; ``summary`` is the answer in one sentence.

        Args:
            filter: The filter to explain; unset = all services.
            name: Service that is expected in the result; it need not be registered.
            timeout: Seconds for the call.
            **fields: Fields of the filter, such as ``capability="summarize"``.

        Raises:
            InvalidRequest: The filter or the name violates the contract.
        """
        request = pb.ExplainDiscoveryRequest(filter=values.make_filter(filter, fields), name=name)
        return await self._call(request, pb.ExplainDiscoveryResponse, timeout)

    async def list_events(
        self,
        name: str = "",
        *,
        since: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> pb.ListEventsResponse:
        """Return one page of past events, newest first, from those that the registry keeps.

        Args:
            name: Service that the events are about; it need not be registered. Empty = all services.
            since: Time of the oldest event, with a time zone; unset = all that are kept.
            page_size: Maximum number of events, up to 1,000; 0 = 100.
            page_token: ``next_page_token`` of the previous page, with the same ``name`` and ``since``.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The name, page size or token violates the contract.
            StoreUnavailable: The registry cannot reach its store, and the events are not in its memory.
        """
        request = pb.ListEventsRequest(name=name, page_size=page_size, page_token=page_token)
        if since is not None:
            request.since.FromDatetime(since)
        return await self._call(request, pb.ListEventsResponse, timeout)

    async def _explain_criteria(self, capability: str, criteria: Criteria, *, available: bool) -> str:
        """Return why no service meets the criteria of ``ServiceCache.resolve``; empty if no answer comes at once."""
        filter_ = ServiceFilter(
            capability=capability,
            group=criteria.get("group", ""),
            environment=criteria.get("environment", ""),
            labels=criteria.get("labels") or {},
            available=available,
        )
        setattr(filter_, "capability_version" if capability else "version", criteria.get("version", ""))
        try:
            return (await self.explain_discovery(filter_, timeout=_EXPLANATION_SECONDS)).summary
        except RegistryError:
            return ""

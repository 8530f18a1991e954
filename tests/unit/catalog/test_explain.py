"""``Explanations``: the time that they leave to other tasks."""

import asyncio

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Capability, ServiceFilter
from registry_server.catalog import Change, Discovery, Explanations, Replica
from registry_server.catalog.discovery import DiscoveryLimits
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from registry_server.security.visibility import Visibility
from registry_server.store import Position
from tests.support.samples import small_service


async def test_values_of_hidden_services_leave_turns_to_other_tasks() -> None:
    replica = Replica(100)
    replica.start_at((), Position("epoch", 0))
    capabilities = [Capability(name=f"c{i}", version="1") for i in range(100)]
    hidden = Record(small_service("hidden", revision=1, capabilities=capabilities).SerializeToString())
    type_, reason = EventType.EVENT_TYPE_SERVICE_REGISTERED, EventReason.EVENT_REASON_CLIENT_REQUEST
    replica.apply_change(Change(revision=1, type=type_, reason=reason, at_ms=1, before=None, after=hidden))
    visible = Visibility(("other",), ())

    def compile_(message: ServiceFilter) -> Filter:
        return visible.join(compile_filter(message, "filter", []), None)

    explanations = Explanations(replica, Discovery(replica, DiscoveryLimits(slice_seconds=0)))
    answer = asyncio.create_task(explanations.explain(ServiceFilter(capability="c"), "", compile_))
    turns = 0
    while not answer.done():
        await asyncio.sleep(0)
        turns += 1
    assert not answer.result().conditions[0].nearest
    assert turns > 100 * 32

"""No read of a caller that sees some services depends on the others, whatever happens to them."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, GetServiceRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthStatus, Service, ServiceFilter
from registry_server.catalog import Discovery, Replica
from registry_server.catalog.change import Change, WatchEvent
from registry_server.errors import ServiceNotFound
from registry_server.model.filters import EVERYTHING, Filter, compile_filter
from registry_server.model.record import Record
from registry_server.registry.reads import RegistryReads
from registry_server.replication import Writes
from registry_server.runtime.clock import system_clock
from registry_server.security.identity import Identity, Role, current_identity
from registry_server.security.policy import Sees
from registry_server.store import Position
from registry_server.watch import WatchHub, WatchLimits
from registry_server.watch.groups import match_event
from tests.support.changes import change
from tests.support.samples import small_service

NAMES = [*"abc", "own-1", "own-2"]
UNMATCHED = EventType.EVENT_TYPE_SERVICE_UNMATCHED
CALLER = Identity(
    "agent",
    Role.AGENT,
    "api-key",
    ("own-*",),
    visibility=Sees(environments=("production",)).visibility(("own-*",)),
)
FILTERS = [
    ServiceFilter(),
    ServiceFilter(tags=["t"]),
    ServiceFilter(name_pattern="[ab1]"),
    ServiceFilter(capability="x"),
]


class Site:
    """The reads of a process whose replica the test changes."""

    def __init__(self) -> None:
        self.replica = Replica(history_length=100)
        self.replica.start_at([], Position("epoch", 0))
        self.replica.secret = bytes(32)
        discovery = Discovery(self.replica)
        discovery.set_stale(stale=False)
        follower = cast("Any", SimpleNamespace(loaded=True, connected=True, lag=0.0))
        self.reads = RegistryReads(
            replica=self.replica,
            discovery=discovery,
            hub=WatchHub(self.replica, discovery, WatchLimits(buffer_events=1000, buffer_bytes=1 << 20)),
            follower=follower,
            writes=Writes(cast("Any", None), self.replica, follower, default_ttl=60),
            clock=system_clock,
        )

    def change(self, name: str, after: Record | None) -> None:
        """Apply a change; of a service that does not exist and will not, a notice, which takes a revision too."""
        before = self.replica.records.get(name)
        notice = before is None and after is None
        types = EventType.EVENT_TYPE_SERVICE_UPDATED if before else EventType.EVENT_TYPE_SERVICE_REGISTERED
        self.replica.apply_change(
            Change(
                revision=self.replica.revision + 1,
                type=types if after else EventType.EVENT_TYPE_SERVICE_UNREGISTERED,
                reason=EventReason.EVENT_REASON_HEALTH_CHECK,
                at_ms=(self.replica.revision + 1) * 1000,
                before=before,
                after=after,
                error="failing" if notice else "",
            )
        )

    async def answers(self) -> list[object]:
        """Return the answer of every read, cached or not."""
        answers: list[object] = []
        for message in FILTERS:
            wire = DiscoverServicesRequest(filter=message, page_size=2).SerializeToString()
            request = DiscoverServicesRequest.FromString(wire)
            while True:
                cached = self.reads.cached_page(wire)
                page = await self.reads.find_page(request, wire=wire)
                assert cached is None or cached.wire() == page.wire()
                answers.append(page.wire())
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
                wire = request.SerializeToString()
            answers.append([service.name for service in await self.reads.discover(message)])
        token = ""
        while True:
            capabilities = await self.reads.list_capabilities(1, token)
            answers.append(capabilities)
            if not (token := capabilities.next_page_token):
                break
        health = await self.reads.visible_health()
        health.ClearField("checked_at")
        answers += [await self.reads.visible_stats(), health]
        for name in NAMES:
            cached_service = self.reads.cached_service(GetServiceRequest(name=name).SerializeToString())
            try:
                found = await self.reads.get(name)
                assert cached_service is found
                answers.append(found.framed)
            except ServiceNotFound as error:
                assert cached_service is None
                answers.append(str(error))
        return answers


def record(name: str, fields: tuple[str, int, str, str], revision: int) -> Record:
    environment, status, capability, tag = fields
    service = small_service(
        name,
        group=name,
        revision=revision,
        version=f"1.0.{status}",
        health={"status": status},
        capabilities=[{"name": capability, "version": "1.0.0"}],
        metadata={"environment": environment, "tags": [tag]},
    )
    return Record(service.SerializeToString())


FIELDS = st.tuples(
    st.sampled_from(["production", "staging"]),
    st.sampled_from([HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_UNHEALTHY]),
    st.sampled_from("xyz"),
    st.sampled_from("tu"),
)
CHANGES = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | FIELDS), max_size=25)
STATES = st.none() | FIELDS.map(lambda fields: record("a", fields, 1))


@given(CHANGES)
def test_no_answer_depends_on_what_is_hidden(changes: Any) -> None:
    """A site with all services answers like one that has only those that the caller sees."""

    async def compare() -> None:
        complete, visible = Site(), Site()
        current_identity.set(CALLER)
        for name, fields in changes:
            after = record(name, fields, complete.replica.revision + 1) if fields else None
            complete.change(name, after)
            visible.change(name, after if after and CALLER.sees(after) else None)
            assert await complete.answers() == await visible.answers()

    asyncio.run(compare())


@given(STATES, STATES, st.sampled_from(FILTERS))
def test_no_event_depends_on_what_is_hidden(
    before: Record | None, after: Record | None, message: ServiceFilter
) -> None:
    def event(filter_: Filter, before: Record | None, after: Record | None) -> WatchEvent | None:
        return match_event(filter_, change(7, before, after, error="" if before or after else "failing"))

    plain = compile_filter(message, "filter", [])
    seen_before, seen_after = (state if state and CALLER.sees(state) else None for state in (before, after))
    received = event(CALLER.restrict(plain), before, after)
    if seen_before and after and not seen_after:
        if not plain.matches(seen_before):
            assert received is None
            return
        assert received is not None
        sent = WatchEventsResponse.FromString(received.frame).events[0]
        sent.ClearField("occurred_at")
        assert sent == Event(type=UNMATCHED, revision=7, service=Service(name="a", revision=7))
        return
    if not before and not after:
        return  # notices are tested below
    expected = event(plain, seen_before, seen_after) if seen_before or seen_after else None
    assert (received and received.frame) == (expected and expected.frame)


@pytest.mark.parametrize(
    ("about", "reason", "receivers"),
    [
        ("", EventReason.EVENT_REASON_RESYNC, {Role.AGENT, Role.OPERATOR}),
        ("", EventReason.EVENT_REASON_HEALTH_CHECK, {Role.OPERATOR}),
        ("other", EventReason.EVENT_REASON_HEALTH_CHECK, {Role.OPERATOR}),
        ("agent", EventReason.EVENT_REASON_HEALTH_CHECK, {Role.AGENT, Role.OPERATOR}),
    ],
)
def test_notices_about_services_of_others_are_hidden(
    about: str, reason: EventReason.ValueType, receivers: set[Role]
) -> None:
    notice = Change(
        revision=1,
        type=EventType.EVENT_TYPE_REGISTRY_ERROR,
        reason=reason,
        at_ms=0,
        before=None,
        after=None,
        error="failing",
        about=about,
    )
    for role in (Role.AGENT, Role.OPERATOR):
        filter_ = replace(CALLER, role=role).restrict(EVERYTHING)
        assert (match_event(filter_, notice) is not None) == (role in receivers)
    assert match_event(EVERYTHING, notice) is not None

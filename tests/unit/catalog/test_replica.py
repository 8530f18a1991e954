import asyncio
import time
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.catalog import replica as replica_module
from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.errors import Overloaded, RevisionNotReached
from registry_server.model.record import Record, tag_term
from registry_server.store import Position
from tests.support.changes import change
from tests.support.samples import small_service

LONG_WAIT_SECONDS = 30.0


class Publications:
    """Records what a replica publishes, and its state at that time."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.received: list[tuple[list[str], Position, list[str]]] = []
        replica.on_published.append(self._on_published)

    def _on_published(self, changes: Sequence[Change], anchors: Collection[str]) -> None:
        del anchors
        names = [change.name for change in changes]
        self.received.append((names, self._replica.position, sorted(self._replica.records)))


def record(name: str, revision: int = 1, **fields: Any) -> Record:
    service = small_service(name, **{"group": name, "revision": revision, **fields})
    return Record(service.SerializeToString())


def loaded(*records: Record, past: Sequence[Change] = (), revision: int = 0) -> Replica:
    replica = Replica(history_length=100)
    replica.load_records(records)
    replica.start_at(past, Position("epoch", revision))
    return replica


def apply(replica: Replica, name: str, after: Record | None) -> Change:
    made = change(replica.revision + 1, replica.records.get(name), after)
    replica.apply_change(made)
    return made


STATES = st.none() | st.builds(
    record,
    st.just("?"),
    metadata=st.fixed_dictionaries({"tags": st.lists(st.sampled_from("xy"), unique=True)}),
    capabilities=st.lists(st.fixed_dictionaries({"name": st.sampled_from(["read", "write"])}), max_size=1),
)


def named(name: str, state: Record | None) -> Record | None:
    if state is None:
        return None
    service = state.message()
    service.name = name
    return Record(service.SerializeToString())


@given(st.lists(st.tuples(st.sampled_from("abc"), STATES)), st.booleans())
def test_replica_equals_the_applied_changes(steps: list[tuple[str, Record | None]], at_once: bool) -> None:  # noqa: FBT001
    replica, held = loaded(), dict[str, Record]()
    changes: list[Change] = []
    for name, state in steps:
        before, after = held.get(name), named(name, state)
        if before is None and after is None:
            continue
        changes.append(change(len(changes) + 1, before, after))
        if after is None:
            del held[name]
        else:
            held[name] = after

    if at_once:
        replica.resync(changes, Position("another", 70))
    else:
        for each in changes:
            replica.apply_change(each)

    assert replica.records == held
    for tag in "xy":
        tagged = {name for name, each in held.items() if tag_term(tag) in each.terms}
        assert set(replica.index.names(tag_term(tag))) == tagged
    assert replica.total_capabilities == sum(len(each.message().capabilities) for each in held.values())
    assert replica.position == (Position("another", 70) if at_once else Position("epoch", len(changes)))


def test_load_sets_records_history_and_position() -> None:
    kept = record("a", 7, capabilities=[{"name": "read"}, {"name": "write"}])
    past = [change(6, None, record("b", 6)), change(7, None, kept)]

    replica = loaded(kept, past=past, revision=7)

    assert replica.records == {"a": kept}
    assert replica.position == Position("epoch", 7)
    assert replica.total_capabilities == 2
    assert replica.history.since(5) == past
    assert replica.history.since(4) is None


def test_load_without_history_continues_from_its_position() -> None:
    replica = loaded(record("a", 7), revision=7)

    later = apply(replica, "a", record("a", 8))

    assert replica.history.since(7) == [later]
    assert replica.history.since(6) is None


def test_resync_restarts_the_history() -> None:
    replica = loaded()
    apply(replica, "a", record("a", 1))

    replica.resync([change(5, None, record("b", 5))], Position("epoch", 5))

    assert replica.history.since(1) is None
    assert replica.history.since(5) == []


def test_changes_are_published_after_they_are_applied() -> None:
    replica = loaded()
    publications = Publications(replica)

    apply(replica, "a", record("a", 1))
    apply(replica, "a", None)

    assert publications.received == [(["a"], Position("epoch", 1), ["a"]), (["a"], Position("epoch", 2), [])]


def test_resync_is_published_once_after_the_whole_of_it_is_applied() -> None:
    replica = loaded()
    apply(replica, "old", record("old", 1))
    publications = Publications(replica)
    difference = [change(9, replica.records["old"], None), change(9, None, record("new", 9))]

    replica.resync(difference, Position("another", 9))

    assert publications.received == [(["old", "new"], Position("another", 9), ["new"])]


def test_callbacks_receive_every_change_and_every_position() -> None:
    replica = loaded()
    applied, revisions = list[Change](), list[int]()
    replica.on_applied.append(applied.append)
    replica.on_position_changed.append(lambda: revisions.append(replica.revision))

    first = apply(replica, "a", record("a", 1))
    difference = [change(8, first.after, None), change(8, None, record("b", 8))]
    replica.resync(difference, Position("another", 8))

    assert applied == [first, *difference]
    assert revisions == [1, 8]


def test_out_of_order_revision_is_refused() -> None:
    replica = loaded()

    with pytest.raises(ValueError, match="does not follow"):
        replica.apply_change(change(2, None, record("a", 2)))


async def test_wait_for_an_applied_revision_returns_at_once() -> None:
    replica = loaded(revision=5)

    await replica.wait_for_revision(5, wait_seconds=0)
    await replica.wait_for_revision(0, wait_seconds=0)


async def test_waits_end_when_their_revision_is_applied() -> None:
    replica = loaded()
    waits = {
        revision: [asyncio.create_task(replica.wait_for_revision(revision, LONG_WAIT_SECONDS)) for _ in range(2)]
        for revision in (3, 1, 2)
    }
    await asyncio.sleep(0)

    for revision in (1, 2, 3):
        apply(replica, "a", record("a", revision))
        await asyncio.gather(*waits.pop(revision))
        assert not any(wait.done() for later in waits.values() for wait in later)

    assert not replica._waiters


async def test_resync_ends_waits_for_earlier_revisions() -> None:
    replica = loaded()
    wait = asyncio.create_task(replica.wait_for_revision(40, LONG_WAIT_SECONDS))
    await asyncio.sleep(0)

    replica.resync([], Position("another", 50))

    await wait


async def test_wait_for_a_revision_times_out() -> None:
    replica = loaded(revision=5)

    with pytest.raises(RevisionNotReached, match="revision 7 was not reached in time; this process is at revision 5"):
        await replica.wait_for_revision(7, wait_seconds=0.01)

    assert not replica._waiters


async def test_wait_cancelled_as_its_revision_arrives_stays_cancelled() -> None:
    replica = loaded()
    wait = asyncio.create_task(replica.wait_for_revision(1, LONG_WAIT_SECONDS))
    await asyncio.sleep(0)

    wait.cancel()
    apply(replica, "a", record("a", 1))
    await asyncio.wait([wait])

    assert wait.cancelled()
    assert not replica._waiters


async def test_cancelled_wait_leaves_other_waits() -> None:
    replica = loaded()
    waits = [asyncio.create_task(replica.wait_for_revision(revision, LONG_WAIT_SECONDS)) for revision in (1, 2, 2, 3)]
    await asyncio.sleep(0)

    waits[1].cancel()
    await asyncio.wait([waits[1]])

    assert len(replica._waiters) == 3
    for revision in (1, 2, 3):
        apply(replica, "a", record("a", revision))
    await asyncio.gather(waits[0], waits[2], waits[3])


async def test_waits_that_end_together_search_no_list() -> None:
    replica = loaded()
    waits = [asyncio.create_task(replica.wait_for_revision(1 << 60, wait_seconds=0.01)) for _ in range(10_000)]
    await asyncio.sleep(0)

    before = time.thread_time()
    outcomes = await asyncio.gather(*waits, return_exceptions=True)

    assert all(isinstance(outcome, RevisionNotReached) for outcome in outcomes)
    assert time.thread_time() - before < 3, "searching a list for each takes half a minute"
    assert not replica._waiters


async def test_revision_wakes_a_limited_number_of_its_waits_in_a_turn() -> None:
    replica = loaded()
    waits = [asyncio.create_task(replica.wait_for_revision(1, LONG_WAIT_SECONDS)) for _ in range(500)]
    await asyncio.sleep(0)
    apply(replica, "a", record("a", 1))

    done = [0]
    while done[-1] < len(waits):
        await asyncio.sleep(0)
        done.append(sum(wait.done() for wait in waits))

    assert max(after - before for before, after in pairwise(done)) <= 64


async def test_client_with_many_waits_leaves_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(history_length=100, max_waiting_clients=100)
    replica.start_at([], Position("epoch", 0))
    waits = [asyncio.create_task(replica.wait_for_client(1, LONG_WAIT_SECONDS)) for _ in range(100)]
    await asyncio.sleep(0)
    refused = [wait for wait in waits if wait.done()]

    monkeypatch.setattr(replica_module, "current_caller_key", lambda: ("api-key", "another"))
    others = [asyncio.create_task(replica.wait_for_client(1, LONG_WAIT_SECONDS)) for _ in range(10)]
    await asyncio.sleep(0)
    apply(replica, "a", record("a", 1))
    await asyncio.gather(*others)

    assert len(refused) > 10
    for wait in refused:
        with pytest.raises(Overloaded, match="waiting for a revision"):
            await wait
    await asyncio.gather(*(wait for wait in waits if wait not in refused))
    assert replica._waiting_clients.held == 0

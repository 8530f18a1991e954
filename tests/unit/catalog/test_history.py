import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.change import Change
from registry_server.catalog.history import History
from registry_server.model.record import Record
from tests.support.samples import small_service

PLENTY = 1 << 30


def change(revision: int, description: str = "") -> Change:
    service = small_service("a", revision=revision, metadata={"description": description})
    return Change(
        revision=revision,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=None,
        after=Record(service.SerializeToString()),
    )


def history_of(*changes: Change, most: int = 1000, most_bytes: int = PLENTY) -> History:
    history = History(most, most_bytes)
    history.restart(changes[0].revision - 1)
    for each in changes:
        history.append(each)
    return history


@given(start=st.integers(0, 5), count=st.integers(1, 12), most=st.integers(1, 12), asked=st.integers(0, 20))
def test_since_gives_all_changes_after_a_revision_or_none_at_all(start: int, count: int, most: int, asked: int) -> None:
    changes = [change(revision) for revision in range(start + 1, start + count + 1)]

    since = history_of(*changes, most=most).since(asked)

    wanted = [each for each in changes if each.revision > asked]
    kept = changes[-most:]
    if kept[0].revision - 1 <= asked <= changes[-1].revision:
        assert since is not None
        assert list(since) == wanted
    else:
        assert since is None


def test_the_oldest_go_first_when_there_are_too_many() -> None:
    history = history_of(*(change(revision) for revision in range(1, 6)), most=3)

    assert [each.revision for each in history.since(2) or ()] == [3, 4, 5]
    assert history.since(1) is None


def test_the_oldest_go_first_when_they_take_too_many_bytes() -> None:
    changes = [change(revision, description="d" * 1000) for revision in range(1, 6)]
    history = history_of(*changes, most_bytes=2 * changes[0].size)

    assert [each.revision for each in history.since(3) or ()] == [4, 5]
    assert history.since(2) is None


def test_a_change_that_alone_takes_too_many_bytes_still_counts_as_the_newest() -> None:
    history = history_of(change(1), change(2, description="d" * 5000), most_bytes=4000)

    assert history.newest is None
    assert history.since(2) == []
    assert history.since(1) is None
    history.append(change(3))
    assert [each.revision for each in history.since(2) or ()] == [3]


def test_bytes_of_forgotten_changes_are_not_counted() -> None:
    large = change(1, description="d" * 3000)
    history = history_of(large, most_bytes=large.size)
    history.restart(0)
    history.append(change(1))
    history.append(change(2))

    assert len(history.since(0) or ()) == 2


@pytest.mark.parametrize("revision", [3, 4, 6, 0])
def test_a_revision_that_does_not_follow_is_refused(revision: int) -> None:
    history = history_of(change(3), change(4))

    with pytest.raises(ValueError, match=f"revision {revision} does not follow 4"):
        history.append(change(revision))

    assert history.since(2) is not None


def test_the_newest_change_is_known_until_history_starts_anew() -> None:
    newest = change(8)
    history = history_of(change(7), newest)

    assert history.newest is newest
    history.restart(20)
    assert history.newest is None
    assert history.since(20) == []
    assert history.since(8) is None
    assert history.since(21) is None

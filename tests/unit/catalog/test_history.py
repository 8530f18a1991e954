import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.change import Change
from registry_server.catalog.history import History
from registry_server.model.record import Record
from tests.support.samples import small_service

UNLIMITED_BYTES = 1 << 30


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


def history_of(*changes: Change, max_changes: int = 1000, max_bytes: int = UNLIMITED_BYTES) -> History:
    history = History(max_changes, max_bytes)
    history.restart(changes[0].revision - 1)
    for each in changes:
        history.append(each)
    return history


@given(start=st.integers(0, 5), count=st.integers(1, 12), limit=st.integers(1, 12), after=st.integers(0, 20))
def test_since_returns_all_changes_after_a_revision_or_none(start: int, count: int, limit: int, after: int) -> None:
    changes = [change(revision) for revision in range(start + 1, start + count + 1)]

    since = history_of(*changes, max_changes=limit).since(after)

    expected = [each for each in changes if each.revision > after]
    kept = changes[-limit:]
    if kept[0].revision - 1 <= after <= changes[-1].revision:
        assert since is not None
        assert list(since) == expected
    else:
        assert since is None


def test_oldest_changes_are_dropped_beyond_the_count_limit() -> None:
    history = history_of(*(change(revision) for revision in range(1, 6)), max_changes=3)

    assert [each.revision for each in history.since(2) or ()] == [3, 4, 5]
    assert history.since(1) is None


def test_oldest_changes_are_dropped_beyond_the_byte_limit() -> None:
    changes = [change(revision, description="d" * 1000) for revision in range(1, 6)]
    history = history_of(*changes, max_bytes=2 * changes[0].size)

    assert [each.revision for each in history.since(3) or ()] == [4, 5]
    assert history.since(2) is None


def test_oversized_change_advances_the_newest_revision() -> None:
    history = history_of(change(1), change(2, description="d" * 5000), max_bytes=4000)

    assert history.newest is None
    assert history.since(2) == []
    assert history.since(1) is None
    history.append(change(3))
    assert [each.revision for each in history.since(2) or ()] == [3]


def test_restart_resets_the_byte_count() -> None:
    large = change(1, description="d" * 3000)
    history = history_of(large, max_bytes=large.size)
    history.restart(0)
    history.append(change(1))
    history.append(change(2))

    assert len(history.since(0) or ()) == 2


@pytest.mark.parametrize("revision", [3, 4, 6, 0])
def test_non_consecutive_revision_is_refused(revision: int) -> None:
    history = history_of(change(3), change(4))

    with pytest.raises(ValueError, match=f"revision {revision} does not follow 4"):
        history.append(change(revision))

    assert history.since(2) is not None


def test_newest_change_is_kept_until_a_restart() -> None:
    newest = change(8)
    history = history_of(change(7), newest)

    assert history.newest is newest
    history.restart(20)
    assert history.newest is None
    assert history.since(20) == []
    assert history.since(8) is None
    assert history.since(21) is None


def test_old_changes_are_dropped_beyond_their_share_of_the_bytes() -> None:
    size = change(1).size
    history = History(1000, 4 * size, min_ms=1_000, max_old_bytes=2 * size)
    history.restart(0)
    kept = []
    for revision, at_ms in enumerate([0, 100, 999, 1_000, 5_000], 1):
        each = change(revision)
        each.at_ms = at_ms
        history.append(each)
        kept.append([other.at_ms for other in history._changes])

    assert kept == [[0], [0, 100], [0, 100, 999], [100, 999, 1_000], [1_000, 5_000]]


def test_number_of_changes_is_not_limited_within_the_time_that_is_kept() -> None:
    history = History(2, UNLIMITED_BYTES, min_ms=1_000)
    history.restart(0)
    kept = []
    for revision, at_ms in enumerate([0, 100, 999, 1_000, 1_500, 5_000], 1):
        each = change(revision)
        each.at_ms = at_ms
        history.append(each)
        kept.append([other.at_ms for other in history._changes])

    assert kept == [
        [0],
        [0, 100],
        [0, 100, 999],
        [100, 999, 1_000],
        [999, 1_000, 1_500],
        [1_500, 5_000],
    ]


def test_bytes_are_limited_within_the_time_that_is_kept() -> None:
    history = History(2, 3 * change(1).size, min_ms=1_000)
    history.restart(0)
    for revision in range(1, 10):
        history.append(change(revision))

    assert history.oldest is not None
    assert history.oldest.revision == 7

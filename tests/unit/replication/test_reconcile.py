"""Which differences between the store and the replica the history does not explain."""

import pytest

from registry_server.catalog.replica import Replica
from registry_server.model.record import Record
from registry_server.replication.reconcile import contradicts
from registry_server.store import Position
from tests.support.changes import change
from tests.support.samples import small_service


def record(name: str, revision: int) -> Record:
    return Record(small_service(name, revision=revision).SerializeToString())


@pytest.fixture
def replica() -> Replica:
    """A replica in which ``a`` was changed at revision 2, and ``gone`` was removed at revision 4."""
    replica = Replica(10)
    replica.start_at((), Position("epoch", 0))
    gone = record("gone", 3)
    for each in (
        change(1, None, record("a", 1)),
        change(2, record("a", 1), record("a", 2)),
        change(3, None, gone),
        change(4, gone, None),
    ):
        replica.apply_change(each)
    return replica


@pytest.mark.parametrize(
    ("name", "newest", "stored", "expected"),
    [
        ("a", 2, 0, True),  # vanished
        ("a", 4, 1, True),  # replaced by an older record
        ("a", 4, 9, True),
        ("a", 4, 2, False),
        ("a", 1, 1, False),  # changed since
        ("gone", 4, 3, True),  # reappeared
        ("gone", 3, 3, False),  # removed since
        ("gone", 4, 0, False),
        ("never", 4, 7, True),
        ("never", 4, 0, False),
    ],
)
def test_contradiction_of_the_history(replica: Replica, name: str, newest: int, stored: int, expected: bool) -> None:  # noqa: FBT001 - a parameter
    assert contradicts(replica, name, "epoch", newest, stored) is expected
    assert not contradicts(replica, name, "another epoch", newest, stored)

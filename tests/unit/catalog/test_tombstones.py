from registry_server.catalog.tombstones import Tombstones
from registry_server.model.record import Record
from tests.support.changes import change
from tests.support.samples import small_service


def record(name: str) -> Record:
    return Record(small_service(name, revision=1).SerializeToString())


def test_newest_removals_are_kept_within_the_limit() -> None:
    removal = change(1, record("a"), None)
    tombstones = Tombstones(max_bytes=2 * removal.size)
    again = change(2, record("a"), None)
    for each in (removal, again, change(3, None, record("b"))):
        tombstones.apply_change(each)
    assert tombstones.get("a") is again
    assert tombstones.get("b") is None

    for each in (change(4, record("b"), None), change(5, record("c"), None)):
        tombstones.apply_change(each)
    assert [name for name in "abc" if tombstones.get(name)] == ["b", "c"]

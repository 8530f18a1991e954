"""``RegistryReads``: reads before the catalog is loaded."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ossa.registry.v1.registry_service_pb2 import (
    Consistency,
    DiscoverServicesRequest,
    GetServiceRequest,
    WatchEventsRequest,
)
from registry_server.catalog import Discovery, Replica
from registry_server.errors import StoreUnavailable
from registry_server.model.record import Record
from registry_server.registry.reads import RegistryReads
from registry_server.replication import Writes
from registry_server.runtime.clock import system_clock
from registry_server.store import Position
from registry_server.watch import WatchHub, WatchLimits
from tests.support.samples import small_service

A = Record(small_service("a", revision=1).SerializeToString())
REQUEST = GetServiceRequest(name="a").SerializeToString()


def reads_while_loading() -> tuple[RegistryReads, Replica, Any]:
    """Return reads over a replica that is partly loaded, the replica, and the state of the follower."""
    replica = Replica(history_length=10)
    replica.load_records([A])
    discovery = Discovery(replica)
    follower = cast("Any", SimpleNamespace(loaded=False, connected=False))
    reads = RegistryReads(
        replica=replica,
        discovery=discovery,
        hub=WatchHub(replica, discovery, WatchLimits(buffer_events=10, buffer_bytes=1000)),
        follower=follower,
        writes=Writes(cast("Any", None), replica, follower, default_ttl=60),
        clock=system_clock,
    )
    return reads, replica, follower


async def test_every_read_is_unavailable_until_the_catalog_is_loaded() -> None:
    reads, replica, follower = reads_while_loading()

    assert reads.cached_service(REQUEST) is None
    for call in (reads.get("a"), reads.find_page(DiscoverServicesRequest()), reads.watch(WatchEventsRequest())):
        with pytest.raises(StoreUnavailable):
            await call

    replica.start_at([], Position("epoch", 1))
    follower.loaded = True
    assert reads.cached_service(REQUEST) is A
    assert await reads.get("a") is A
    assert (await reads.find_page(DiscoverServicesRequest())).records == [A]


@pytest.mark.parametrize("request_bytes", [b"", b"\x0a\x01\xff", b"\x0a\x01b", REQUEST + REQUEST], ids=repr)
def test_request_for_anything_but_a_known_name_has_no_cached_service(request_bytes: bytes) -> None:
    reads, _, follower = reads_while_loading()
    follower.loaded = True
    assert reads.cached_service(request_bytes) is None


@pytest.mark.parametrize(
    ("request_", "cached"),
    [
        (DiscoverServicesRequest(), True),
        (DiscoverServicesRequest(consistency=Consistency.CONSISTENCY_EVENTUAL), True),
        (DiscoverServicesRequest(consistency=Consistency.CONSISTENCY_STRONG), False),
        (DiscoverServicesRequest(min_revision=1), False),
    ],
    ids=["default", "eventual", "strong", "minimum revision"],
)
async def test_only_answers_that_need_no_waiting_are_cached(
    request_: DiscoverServicesRequest,
    cached: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def read_head(_: Writes) -> int:
        return 1

    monkeypatch.setattr(Writes, "read_head", read_head)
    reads, replica, follower = reads_while_loading()
    replica.start_at([], Position("epoch", 1))
    follower.loaded = True
    wire = request_.SerializeToString()

    page = await reads.find_page(request_, wire=wire)

    assert reads.cached_page(wire) is (page if cached else None)

"""``Listing``: answers to ``GET /services``, cached with the page that they were encoded from."""

import gzip
import json
from typing import Any, cast

import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.catalog import Change, Discovery, Replica
from registry_server.gateway import documents
from registry_server.gateway.compression import Compression, end_gzip
from registry_server.gateway.documents import Documents
from registry_server.gateway.listing import Listing
from registry_server.model.document import encode_document_prefix
from registry_server.model.record import Record
from registry_server.registry.reads import RegistryReads
from registry_server.runtime.clock import system_clock
from registry_server.store import Position
from tests.support.samples import small_service

QUERY = "tags=x&pageSize=100"
PARAMETERS = {"tags": "x", "pageSize": "100"}


class Loaded:
    """A follower and writes whose catalog is loaded."""

    loaded = connected = True

    def require_loaded(self) -> None:
        """Do nothing."""


class Fleet:
    """A listing over a replica changed by the test."""

    def __init__(self) -> None:
        self.replica = Replica(history_length=10)
        self.replica.start_at([], Position("epoch", 0))
        loaded = cast("Any", Loaded())
        discovery = Discovery(self.replica)
        reads = RegistryReads(
            replica=self.replica,
            discovery=discovery,
            hub=cast("Any", None),
            follower=loaded,
            writes=loaded,
            clock=system_clock,
        )
        self.listing = Listing(cast("Any", reads), Documents())

    def put_service(self, name: str, version: str = "1.0.0") -> None:
        revision = self.replica.revision + 1
        service = small_service(name, revision=revision, version=version, metadata={"tags": ["x"]})
        change = Change(
            revision=revision,
            type=EventType.EVENT_TYPE_SERVICE_UPDATED,
            reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
            at_ms=0,
            before=self.replica.records.get(name),
            after=Record(service.SerializeToString()),
        )
        self.replica.apply_change(change)


async def test_answer_is_cached_until_a_change_affects_it() -> None:
    fleet = Fleet()
    fleet.put_service("a")
    assert fleet.listing.cached_page(QUERY) is None
    answer = await fleet.listing.find_page(QUERY, PARAMETERS)
    assert [service["name"] for service in json.loads(answer.json)["services"]] == ["a"]
    assert fleet.listing.cached_page(QUERY) is answer

    fleet.put_service("b")

    assert fleet.listing.cached_page(QUERY) is None
    assert (fleet.listing.counters.hits, fleet.listing.counters.misses) == (1, 2)
    assert json.loads((await fleet.listing.find_page(QUERY, PARAMETERS)).json)["count"] == 2


async def test_only_changed_services_are_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = list[str]()

    def encode(service: Service) -> bytes:
        encoded.append(service.name)
        return encode_document_prefix(service)

    monkeypatch.setattr(documents, "encode_document_prefix", encode)
    fleet = Fleet()
    for name in "abc":
        fleet.put_service(name)
    await fleet.listing.find_page(QUERY, PARAMETERS)
    assert encoded == ["a", "b", "c"]

    fleet.put_service("b", version="2.0.0")
    answer = json.loads((await fleet.listing.find_page(QUERY, PARAMETERS)).json)

    assert encoded == ["a", "b", "c", "b"]
    assert [service["version"] for service in answer["services"]] == ["1.0.0", "2.0.0", "1.0.0"]


async def test_page_is_compressed_once_and_its_bytes_are_counted() -> None:
    fleet, compression = Fleet(), Compression(1_000_000, monotonic=lambda: 0.0)
    fleet.put_service("a")
    page = await fleet.listing.find_page(QUERY, PARAMETERS)
    size = page.size

    kept = await fleet.listing.compress(page, QUERY, compression)

    assert kept is not None
    assert gzip.decompress(end_gzip(kept, b"}")) == b'{"success":true,"data":%b}' % page.json
    assert page.size == size + len(kept.data)
    assert compression.take(1_000_000 - len(page.json))
    assert not compression.take(1), "charged once"
    assert fleet.listing.cached_page(QUERY) is page
    assert await fleet.listing.compress(page, QUERY, Compression(0)) is kept, "no further charge"

"""JSON of services is made once, and what is kept of it is bounded."""

import json

from registry_server.gateway.documents import Documents
from registry_server.model.document import service_document
from tests.support.samples import seed_service, small_service


def test_the_json_is_that_of_the_service() -> None:
    service = seed_service()
    service.revision = 7
    documents = Documents()
    first = documents.of(service.SerializeToString())
    assert json.loads(first) == service_document(service)
    assert documents.of(service.SerializeToString()) is first


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    documents = Documents(most_bytes=2_000)
    wires = [small_service(f"agent-{i:03}").SerializeToString() for i in range(100)]
    made = [documents.of(wire) for wire in wires]
    assert documents._bytes <= 2_000
    assert documents._bytes == sum(len(wire) + len(kept) + 200 for wire, kept in documents._kept.items())
    assert list(documents._kept) == wires[-len(documents._kept) :]
    assert [documents.of(wire) for wire in wires] == made


def test_one_that_is_larger_than_the_bound_is_made_and_not_kept() -> None:
    documents = Documents(most_bytes=100)
    assert json.loads(documents.of(seed_service().SerializeToString()))["name"] == "ai-text-processor"
    assert documents._bytes == 0

"""JSON of services is made once, and what is kept of it is bounded."""

import json

from registry_server.gateway.documents import Documents
from registry_server.model.document import service_document
from tests.support.samples import example_service, small_service


def test_the_json_is_that_of_the_service() -> None:
    service = example_service()
    service.revision = 7
    documents = Documents()
    first = documents.encoded(service.SerializeToString())
    assert json.loads(first) == service_document(service)
    assert documents.encoded(service.SerializeToString()) is first


def test_what_is_entries_is_bounded_and_the_oldest_goes_first() -> None:
    documents = Documents(max_bytes=2_000)
    wires = [small_service(f"agent-{i:03}").SerializeToString() for i in range(100)]
    made = [documents.encoded(wire) for wire in wires]
    assert documents._bytes <= 2_000
    assert documents._bytes == sum(len(wire) + len(kept) + 200 for wire, kept in documents._entries.items())
    assert list(documents._entries) == wires[-len(documents._entries) :]
    assert [documents.encoded(wire) for wire in wires] == made


def test_one_that_is_larger_than_the_bound_is_made_and_not_entries() -> None:
    documents = Documents(max_bytes=100)
    assert json.loads(documents.encoded(example_service().SerializeToString()))["name"] == "ai-text-processor"
    assert documents._bytes == 0

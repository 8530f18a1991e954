"""``Documents``: a bounded cache of the JSON of services."""

import json

from registry_server.gateway.documents import Documents
from registry_server.model.document import service_document
from tests.support.samples import example_service, small_service


def test_json_is_encoded_once() -> None:
    service = example_service()
    service.revision = 7
    documents = Documents()
    first = documents.encoded(service.SerializeToString())
    assert json.loads(first) == service_document(service)
    assert documents.encoded(service.SerializeToString()) is first


def test_cache_is_bounded_and_evicts_the_oldest_entries() -> None:
    documents = Documents(max_bytes=2_000)
    wires = [small_service(f"agent-{i:03}").SerializeToString() for i in range(100)]
    encoded = [documents.encoded(wire) for wire in wires]
    assert documents._bytes <= 2_000
    assert documents._bytes == sum(len(wire) + len(document) + 200 for wire, document in documents._entries.items())
    assert list(documents._entries) == wires[-len(documents._entries) :]
    assert [documents.encoded(wire) for wire in wires] == encoded


def test_document_larger_than_the_cache_is_not_cached() -> None:
    documents = Documents(max_bytes=100)
    assert json.loads(documents.encoded(example_service().SerializeToString()))["name"] == "ai-text-processor"
    assert documents._bytes == 0

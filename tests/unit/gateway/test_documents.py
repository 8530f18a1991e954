"""``Documents``: a bounded cache of the JSON of services."""

import json
import tracemalloc
from typing import Any

import pytest

from registry_server.gateway.documents import Documents
from registry_server.model.document import service_document
from registry_server.model.record import Record, shared
from tests.support.samples import example_service, small_service


def record(name: str) -> Record:
    return Record(small_service(name, revision=1).SerializeToString())


def test_json_is_encoded_once() -> None:
    service = example_service()
    service.revision = 7
    subject = Record(service.SerializeToString())
    documents = Documents()
    first = documents.encoded(subject)
    assert json.loads(first) == service_document(service)
    assert documents.encoded(subject) is first


def test_cache_is_bounded_and_evicts_the_least_recently_used() -> None:
    documents = Documents(max_bytes=10_000)
    hot, *cold = [record(f"agent-{i:03}") for i in range(100)]
    first = documents.encoded(hot)
    for each in cold:
        documents.encoded(each)
        assert documents.encoded(hot) is first
        assert documents._documents.currsize <= 10_000
    kept = len(documents._documents)
    assert 2 < kept < 20
    assert list(documents._documents) == [each.framed for each in (hot, *cold[-(kept - 1) :])]


@pytest.mark.parametrize(
    "capability",
    [{"name": "c", "version": "v" * 60}, {"name": "c", "inputs": {"numbers": [1] * 60}}],
    ids=["terms", "numbers"],
)
def test_memory_of_outdated_services_is_near_their_accounted_size(capability: dict[str, Any]) -> None:
    documents = Documents()

    def encode(revision: int) -> None:
        capabilities = [{**capability, "name": f"c{revision}-{i}"} for i in range(30)]
        service = small_service("a", revision=revision, capabilities=capabilities)
        documents.encoded(Record(service.SerializeToString()))

    encode(1)
    tracemalloc.start()
    try:
        for revision in range(2, 40):
            encode(revision)
        shared.cache_clear()  # terms of any record, which are limited on their own
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert used < 1.2 * documents._documents.currsize


def test_document_larger_than_the_cache_is_not_cached() -> None:
    documents = Documents(max_bytes=100)
    assert json.loads(documents.encoded(Record(example_service().SerializeToString())))["name"] == "ai-text-processor"
    assert not documents._documents

import tracemalloc

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.registry_service_pb2 import DiscoverServicesResponse, GetServiceResponse
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_server.model.record import (
    Record,
    capability_term,
    capability_version_term,
    environment_term,
    group_term,
    health_term,
    label_term,
    tag_term,
    version_term,
)
from tests.support.samples import example_service, small_service


def example() -> Service:
    service = example_service()
    service.group = "text"
    service.revision = 300
    service.instance_id, service.draining = "i1", True
    service.maintenance.SetInParent()
    service.health.status = HealthStatus.HEALTH_STATUS_DEGRADED
    return service


def record(service: Service) -> Record:
    return Record(service.SerializeToString())


@given(st.integers(0, 20_000))
def test_record_returns_its_service_in_every_encoding(length: int) -> None:
    service = small_service("a", metadata={"description": "d" * length})
    wire = service.SerializeToString()

    held = Record(wire)

    assert held.wire == wire
    assert held.message() == service
    assert GetServiceResponse.FromString(held.framed).service == service
    assert list(DiscoverServicesResponse.FromString(held.framed * 2).services) == [service, service]
    assert Event.FromString(held.framed_as(b"\x12")).service == service


def test_frequently_read_fields_are_attributes() -> None:
    held = record(example())

    assert (held.name, held.revision, held.status) == ("ai-text-processor", 300, HealthStatus.HEALTH_STATUS_DEGRADED)
    assert (held.instance_id, held.draining, held.in_maintenance) == ("i1", True, True)
    assert held.version() == "2.1.0"
    assert repr(held) == "Record('ai-text-processor', revision=300)"


def test_changing_a_parsed_message_does_not_change_the_record() -> None:
    held = record(example())

    held.message().name = "changed"

    assert held.message() == example()


def test_terms_cover_all_fields_that_filters_use() -> None:
    assert set(record(example()).terms) == {
        health_term(HealthStatus.HEALTH_STATUS_DEGRADED),
        version_term("2.1.0"),
        group_term("text"),
        environment_term("production"),
        tag_term("ai"),
        tag_term("nlp"),
        label_term("region", "eu"),
        label_term("tier", "gold"),
        capability_term("text-analysis"),
        capability_version_term("text-analysis", "2.0.0"),
        capability_term("translate"),
        capability_version_term("translate", "1.4.2"),
    }


def test_terms_are_unique() -> None:
    versions = [{"name": "read", "version": version} for version in ("1", "2", "")]
    terms = record(small_service("a", capabilities=versions)).terms

    assert len(terms) == len(set(terms))
    assert terms.count(capability_term("read")) == 1


def test_service_without_environment_has_no_environment_term() -> None:
    assert not any(term.startswith("e:") for term in record(small_service("a")).terms)


def test_terms_of_different_kinds_or_parts_differ() -> None:
    same = "same"
    terms = [
        capability_term(same),
        capability_version_term(same, same),
        capability_version_term(same, ""),
        capability_version_term("", same),
        tag_term(same),
        environment_term(same),
        group_term(same),
        version_term(same),
        health_term(1),
        label_term(same, same),
        label_term(same, ""),
    ]

    assert len(set(terms)) == len(terms)


def test_records_share_equal_terms_in_memory() -> None:
    one, other = record(example()), record(example())

    assert all(a is b for a, b in zip(one.terms, other.terms, strict=True))
    assert one.name is other.name


def test_terms_of_replaced_records_use_no_memory() -> None:
    def replace_records(first: int) -> int:
        for i in range(first, first + 500):
            record(small_service("a", metadata={"tags": [f"{i}-{j}" for j in range(60)]}))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = replace_records(0)  # more terms than are kept for sharing
        grown = replace_records(500) - before
    finally:
        tracemalloc.stop()

    assert grown < 100_000


def test_capability_versions_are_those_of_exactly_that_name() -> None:
    offered = [("read", "2"), ("read", ""), ("read-more", "3"), ("rea", "4"), ("read", "1")]
    capabilities = [{"name": name, "version": version} for name, version in offered]
    held = record(small_service("a", capabilities=capabilities))

    assert sorted(held.capability_versions("read")) == ["", "1", "2"]
    assert held.capability_versions("write") == []


@pytest.mark.parametrize("wire", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_not_a_service_are_refused(wire: bytes) -> None:
    with pytest.raises(DecodeError):
        Record(wire)

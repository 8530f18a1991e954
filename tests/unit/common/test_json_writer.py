"""Messages are written in the JSON of the REST API; ``tests/unit/model/test_document.py`` compares services."""

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import Service
from ossa_common.json_writer import message_document


def test_summary_of_a_capability_is_written() -> None:
    lists = {"versions": ["1"], "serviceNames": ["b"], "serviceCount": 1}
    bare = CapabilitySummary(name="a", versions=["1"], service_names=["b"], service_count=1)
    assert message_document(bare) == {"name": "a", **lists}
    described = CapabilitySummary(name="a", description="d")
    empty = {"versions": [], "serviceNames": [], "serviceCount": 0}
    assert message_document(described) == {"name": "a", **empty, "description": "d"}


def test_statistics_are_written_with_zeros_and_a_rounded_average() -> None:
    assert set(message_document(RegistryStats()).values()) == {0}
    written = message_document(RegistryStats(total_services=3, average_capabilities_per_service=1 / 3))
    assert written["totalServices"] == 3
    assert written["averageCapabilitiesPerService"] == 0.33
    assert len(written) == len(RegistryStats.DESCRIPTOR.fields)


def test_undefined_status_is_written_as_unknown() -> None:
    service = Service()
    service.health.status = 99  # type: ignore[assignment] # a newer registry may send it
    assert message_document(service)["health"] == {"status": "unknown"}


def test_every_field_of_the_contract_can_be_written() -> None:
    """A field of a type that is missing in the tables would raise an exception."""

    def filled(message: Message, depth: int = 0) -> Message:
        for field in message.DESCRIPTOR.fields:
            if field.message_type is not None and not field.is_repeated and depth < 4:
                target = getattr(message, field.name)
                target.SetInParent()
                if not isinstance(target, Timestamp) and target.DESCRIPTOR.file.package.startswith("ossa."):
                    filled(target, depth + 1)
        return message

    assert message_document(filled(Service()))["healthCheck"]["type"] == "none"

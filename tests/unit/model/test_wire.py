import pytest
from google.protobuf.descriptor_pb2 import FileOptions
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import BytesValue, UInt64Value
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesResponse, GetServiceRequest
from ossa.registry.v1.service_pb2 import Health, Service
from registry_server.model.wire import bytes_field, integer_field, only_field, split_repeated, varint

# Values at which a varint needs another byte.
EDGES = st.sampled_from([n for bits in range(7, 64, 7) for n in (2**bits - 1, 2**bits, 2**bits + 1)])
INT64 = st.integers(0, 2**63 - 1) | EDGES.filter(lambda value: value < 2**63)
PAYLOADS = st.binary(max_size=300) | st.sampled_from([127, 128, 16_383, 16_384]).map(bytes)


@given(st.integers(1, 2**64 - 1) | EDGES)
def test_varint_equals_the_encoding_of_protobuf(value: int) -> None:
    assert b"\x08" + varint(value) == UInt64Value(value=value).SerializeToString()


def test_varint_of_zero_is_one_byte() -> None:
    assert varint(0) == b"\0"


@given(INT64)
def test_integer_field_equals_the_encoding_of_protobuf(value: int) -> None:
    assert integer_field(9, value) == Service(revision=value).SerializeToString()


@pytest.mark.parametrize("status", range(6))
def test_enum_field_equals_the_encoding_of_protobuf(status: int) -> None:
    expected = Health.FromString(integer_field(1, status))
    assert expected.status == status
    assert integer_field(1, status) == expected.SerializeToString()


@pytest.mark.parametrize("stale", [False, True])
def test_bool_field_equals_the_encoding_of_protobuf(stale: bool) -> None:  # noqa: FBT001
    assert integer_field(5, int(stale)) == DiscoverServicesResponse(stale=stale).SerializeToString()


@given(PAYLOADS.filter(bool))
def test_bytes_field_equals_the_encoding_of_protobuf(payload: bytes) -> None:
    assert bytes_field(1, payload) == BytesValue(value=payload).SerializeToString()


@given(st.text(min_size=1))
def test_string_field_equals_the_encoding_of_protobuf(text: str) -> None:
    assert bytes_field(3, text.encode()) == Value(string_value=text).SerializeToString()


def test_empty_message_is_encoded_as_a_field() -> None:
    response = DiscoverServicesResponse()
    response.services.add()

    assert bytes_field(1, b"") == response.SerializeToString()


@given(st.text("ab", min_size=1))
def test_field_number_may_need_two_bytes(prefix: str) -> None:
    options = FileOptions(cc_enable_arenas=True, swift_prefix=prefix)

    assert integer_field(31, 1) + bytes_field(39, prefix.encode()) == options.SerializeToString()


@given(st.lists(st.text(max_size=200)), INT64, st.booleans())
def test_concatenated_fields_are_the_message_with_all_of_them(names: list[str], revision: int, stale: bool) -> None:  # noqa: FBT001
    services = [Service(name=name) for name in names]

    wire = b"".join(
        [
            *(bytes_field(1, service.SerializeToString()) for service in services),
            integer_field(4, revision),
            integer_field(5, int(stale)),
        ]
    )

    assert DiscoverServicesResponse.FromString(wire) == DiscoverServicesResponse(
        services=services, revision=revision, stale=stale
    )


GET = GetServiceRequest


@pytest.mark.parametrize("name", ["a", "é" * 63, "x" * 127])
def test_payload_of_a_single_field_is_returned(name: str) -> None:
    assert only_field(GET(name=name).SerializeToString(), 0x0A) == name.encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0a",
        b"\x0a\x00",
        b"\x0a\x05abc",
        GET(name="x" * 128).SerializeToString(),
        GET(name="a", min_revision=1).SerializeToString(),
        GET(min_revision=1 << 20).SerializeToString(),
        GET(name="a").SerializeToString() * 2,
    ],
)
def test_message_of_another_form_must_be_decoded(message: bytes) -> None:
    assert only_field(message, 0x0A) is None


@given(st.lists(PAYLOADS, max_size=20), st.lists(st.binary(max_size=8), max_size=3))
def test_repeated_field_is_split_into_its_payloads(payloads: list[bytes], others: list[bytes]) -> None:
    fields = [bytes_field(1, payload) for payload in payloads]
    fields[1:1] = [bytes_field(2, other) + integer_field(3, len(other) + 1) for other in others]
    assert split_repeated(b"".join(fields) + b"\x21" + bytes(8) + b"\x25" + bytes(4), 1, 20) == payloads


def test_split_ends_behind_the_limit() -> None:
    assert split_repeated(bytes_field(1, b"a") * 1_000 + b"\xff", 1, 3) == [b"a"] * 4


@pytest.mark.parametrize(
    "wire",
    [
        *(b"\x0a", b"\x0a\x05abcd", b"\xff", b"\xff" * 11, b"\0\0", b"\x02\0"),
        *(b"\x0b", b"\x0c", b"\x0f", b"\x10", b"\x21abc", b"\x10\1" * 100),
    ],
    ids=repr,
)
def test_message_that_is_malformed_or_has_many_other_fields_is_not_split(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not an encoded message|a varint has no end"):
        split_repeated(wire, 1, 500)

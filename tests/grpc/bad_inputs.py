"""Tables of invalid requests and the expected errors.

``EMPTY`` is for a registry without services. ``STOCKED`` is for one with the services of ``STOCK``, and may use page
tokens and cursors that it has issued.
"""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from tests.support.samples import small_service

INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
OK: Final = grpc.StatusCode.OK

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class IssuedTokens:
    """Page tokens and cursors that the registry with services, and another one, have issued."""

    page_token: str
    """For ``STOCK_FILTER``, with one service per page."""
    capabilities_token: str
    cursor: str
    snapshot_cursor: str
    """Cursor of a message before ``snapshot_complete``."""
    foreign_cursor: str
    """Cursor of another registry."""


Wire: TypeAlias = Message | bytes | Callable[[IssuedTokens], Message]


@dataclass(frozen=True)
class Row:
    id: str
    rpc: str
    request: Wire
    code: grpc.StatusCode = INVALID
    reason: str | None = "INVALID_REQUEST"
    """``ErrorInfo.reason``; None if gRPC answers, always or sometimes, instead of the registry."""
    fields: frozenset[str] = frozenset()
    """All of ``BadRequest.field_violations[].field``."""
    timeout: float = 10.0


def bad(id_: str, rpc: str, request: Wire, *fields: str) -> Row:
    return Row(f"{rpc}-{id_}", rpc, request, fields=frozenset(fields))


def not_found(id_: str, rpc: str, request: Message) -> Row:
    return Row(f"{rpc}-{id_}", rpc, request, grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


class Fault(NamedTuple):
    """Invalid content of a service or of a filter, and the fields that the error must name."""

    id: str
    fields: Sequence[str]
    content: Mapping[str, Any]


def fault(id_: str, *fields: str, **content: Any) -> Fault:
    return Fault(id_, fields, content)


# Values used by several requests.

LONG: Final = "a" * 129
BAD_NAMES: Final[Mapping[str, str]] = {
    "empty": "",
    "too-long": LONG,
    "dash-first": "-agent",
    "dot-first": ".agent",
    "space": "an agent",
    "slash-first": "/agent",
    "slash-last": "an/",
    "slash-twice": "an//agent",
    "dot-segment": "an/./agent",
    "dots-last": "an/..",
    "route-health": "an/health",
    "route-heartbeat": "@an/agent/heartbeat",
    "route-maintenance": "an/maintenance",
    "route-explain": "an/explain",
    "escaped-slash": "an%2Fagent",
    "colon": "an:agent",
    "line-break-last": "agent\n",
    "nul": "agent\0",
    "not-ascii": "agént",
    "other-digits": "agent٣",
    "wildcard": "*",
}
BAD_ENDPOINTS: Final[Mapping[str, str]] = {
    "empty": "",
    "too-long": "http://h/" + "a" * 2040,
    "no-scheme": "agents.test:8080",
    "host-only": "agents.test",
    "path-only": "/agents",
    "network-path": "//agents.test",
    "no-host": "http://",
    "no-slashes": "http:agents.test",
    "one-slash": "http:/agents.test",
    "query-for-host": "http://?agents.test",
    "fragment-for-host": "http://#agents.test",
    "port-without-host": "http://:8080",
    "javascript-with-host": "JavaScript://agents.test/%0Aalert(1)",
    "data": "data://agents.test",
    "vbscript": "vbscript://agents.test",
    "file-with-host": "file://agents.test/etc/passwd",
    "digit-first-scheme": "3gpp://agents.test",
    "file": "file:///etc/passwd",
    "javascript": "javascript:alert(1)",
    "mail": "mailto:agents@agents.test",
    "unix": "unix:///run/agent.sock",
    "user": "http://me@agents.test",
    "password": "http://me:secret@agents.test",
    "empty-user": "http://@agents.test",
    "port-0": "http://agents.test:0",
    "port-65536": "http://agents.test:65536",
    "port-of-letters": "http://agents.test:http",
    "port-negative": "http://agents.test:-1",
    "port-empty": "http://agents.test:",
    "port-twice": "http://agents.test:80:80",
    "port-other-digits": "http://agents.test:٨٠",
    "tcp-without-port": "tcp://agents.test",
    "space": "http://agents.test/a b",
    "space-first": " http://agents.test",
    "space-last": "http://agents.test ",
    "tab-within": "http://agents\t.test",
    "line-break-within": "http://agents\n.test",
    "line-break-last": "http://agents.test\n",
    "nul": "http://agents.test\0",
    "backslash": "http://agents.test\\evil",
    "not-ascii": "http://agénts.test",
    "dots": "http://agents..test",
    "dot-first": "http://.agents.test",
    "dash-first": "http://-agents.test",
    "long-label": f"http://{'a' * 64}.test",
    "long-host": f"http://{'a.' * 127}test",
    "ipv4-too-high": "http://256.1.1.1",
    "ipv4-short": "http://127.1",
    "ipv4-octal": "http://0177.0.0.1",
    "ipv4-hexadecimal": "http://0x7f000001",
    "ipv4-number": "http://2130706433",
    "ipv6-bare": "http://::1",
    "ipv6-open": "http://[::1",
    "ipv6-closed-only": "http://::1]",
    "ipv6-no-address": "http://[agents]",
    "ipv6-empty": "http://[]",
    "ipv6-zone": "http://[fe80::1%25eth0]:80",
    "ipv6-then-text": "http://[::1]agents",
}
BAD_PATTERNS: Final[Mapping[str, str]] = {
    "lookahead": "a(?=b)",
    "negative-lookahead": "a(?!b)",
    "lookbehind": "(?<=a)b",
    "negative-lookbehind": "(?<!a)b",
    "backreference": r"(a)\1",
    "named-backreference": "(?P<n>a)(?P=n)",
    "atomic-group": "(?>a+)b",
    "possessive": "a*+",
    "conditional": "(a)?(?(1)b|c)",
    "recursion": "(a(?R)?b)",
    "comment": "(?#comment)a",
    "group-open": "(a",
    "group-closed-only": "a)",
    "group-empty-flags": "(?",
    "class-open": "[a",
    "class-reversed": "[z-a]",
    "class-unknown": "[[:agents:]]",
    "property-unknown": r"\p{Agents}",
    "escape-open": "a\\",
    "escape-unknown": r"\8",
    "star-first": "*",
    "plus-first": "+a",
    "question-first": "?",
    "star-twice": "a**",
    "repetition-reversed": "a{3,2}",
    "repetition-over-1000": "a{1001}",
    "repetitions-nested": "(((a{100}){100}){100})",
    "repetitions-nested-large": r"((\pL{500}){500}){500}",
    "group-name-open": "(?P<a",
    "flag-unknown": "(?z)a",
    "too-long": "a" * 513,
    "too-long-and-bad": "(" * 513,
}
BAD_VERSIONS: Final[Mapping[str, str]] = {
    "control-character": ">=1.2\0",
    "line-break": ">=1.2\n",
    "too-long": ">=1." + "0" * 125,
    "too-long-exact": "1" * 129,
}
BAD_PATHS: Final[Mapping[str, str]] = {
    "empty": "",
    "unknown": "owner",
    "unknown-below": "metadata.owner",
    "camel-case": "healthCheck",
    "upper-case": "Version",
    "number": "1",
    "space": "version ",
    "dot-first": ".version",
    "dot-last": "version.",
    "dots": "metadata..tags",
    "output-only-registered-at": "registered_at",
    "output-only-updated-at": "updated_at",
    "output-only-revision": "revision",
    "output-only-within": "health.status_changed_at",
    "below-output-only": "registered_at.seconds",
    "below-a-scalar": "name.first",
    "below-a-map": "metadata.labels.team",
    "below-a-repeated-field": "capabilities.name",
    "index": "capabilities[0]",
    "index-as-path": "metadata.tags.0",
    "below-a-duration": "ttl.seconds",
    "below-a-struct": "health.details.fields",
    "below-a-oneof": "health_check.probe",
    "star-below": "metadata.*",
    "star-first": "*.version",
    "star-twice": "**",
    "request-field": "service.version",
    "long": "version." * 1000,
}
NOT_MESSAGES: Final[Mapping[str, bytes]] = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "json": b'{"name": "agent"}',
    "length-past-the-end": b"\x0a\x7fabc",
    "varint-open": b"\x0a\xff",
    "varint-too-long": b"\x08" + b"\xff" * 10 + b"\x01",
    "group-open": b"\x0b",
    "group-closed-only": b"\x0c",
    "wire-type-7": b"\x0f\x00",
    "random": bytes(range(255, 0, -1)),
}
BAD_TOKENS: Final[Mapping[str, str]] = {
    "one-letter": "a",
    "question-mark": "?",
    "padding": "====",
    "words": "next page",
    "not-ascii": "é",
    "nul": "\0",
    "line-break": "AAAA\n",
    "too-short": "AAAA",
    "number": "100",
    "zeros": "A" * 64,
    "too-long": "A" * 100_000,
    "path": "../../etc/passwd",
}
# The content of a cursor is opaque to clients; these resemble valid cursors.
BAD_CURSORS: Final[Mapping[str, bytes]] = {
    "no-epoch": b"r1.",
    "no-dot": b"r1",
    "no-revision": b"r.0123456789abcdef",
    "no-kind": b"1.0123456789abcdef",
    "unknown-kind": b"x1.0123456789abcdef",
    "negative": b"r-1.0123456789abcdef",
    "sign": b"r+1.0123456789abcdef",
    "prefix": b"r0x1.0123456789abcdef",
    "underscore": b"r1_0.0123456789abcdef",
    "space": b"r 1.0123456789abcdef",
    "letters": b"rxyz.0123456789abcdef",
    "not-ascii": b"r\xd9\xa1.0123456789abcdef",
}
COSTLY_PATTERNS: Final[Mapping[str, str]] = {
    # On the name `aaa...a-`, each of these takes a backtracking matcher from seconds to centuries.
    "nested-plus": "(a+)+$",
    "nested-star": "^(a*)*$",
    "nested-thrice": "^((a+)+)+$",
    "alternatives": "^(a|aa)+$",
    "same-alternatives": "^(a|a|a)*$",
    "class": "^([a-z]+)*$",
    "dots": "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)x$",
    "optional": f"{'a?' * 100}{'a' * 100}x",
    "counted": "^(a{1,50}){1,20}$",
    "groups-256": "(" * 256 + ")" * 256,
    "repetition-1000": "a{1000}",
    "unicode-class": r"\pL+\pN*$",
    "nul": "\0",
    "line-break": "a\nb",
}
RPCS: Final = tuple(method.name for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods)


def seconds(value: int, nanos: int = 0) -> Duration:
    return Duration(seconds=value, nanos=nanos)


def plain(values: Mapping[str, Any]) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


def nested(levels: int) -> Struct:
    """Return a struct with a number of levels, the innermost empty."""
    top = Struct()
    inner = top
    for _ in range(levels - 1):
        inner = inner.fields["k"].struct_value
        inner.SetInParent()
    return top


def nested_lists(levels: int) -> Struct:
    """Return a struct with a number of nested lists."""
    top = Struct()
    inner = top.fields["k"].list_value
    for _ in range(levels - 2):
        inner = inner.values.add().list_value
    inner.SetInParent()
    return top


def details_of(size: int) -> Struct:
    """Return a struct of ``size`` bytes."""
    details = plain({"text": "a" * 4000})
    details["text"] = "a" * (4000 + size - details.ByteSize())
    assert details.ByteSize() == size
    return details


def large(size: int) -> dict[str, Any]:
    """Return a capability of at least ``size`` bytes."""
    return {"name": "large", "inputs": plain({"text": "a" * size})}


def of_size(size: int) -> pb.RegisterServiceRequest:
    """Return a registration of a service of ``size`` bytes."""
    request = register(capabilities=[large(60_000)])
    request.service.capabilities[0].inputs["text"] = "a" * (60_000 + size - request.service.ByteSize())
    assert request.service.ByteSize() == size
    return request


def field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field, for messages that a protobuf library cannot produce."""
    length, head = len(payload), bytearray([number << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + payload


def deep(levels: int) -> bytes:
    """Return a serialised struct that exceeds the recursion limit of parsers."""
    wire = b""
    for _ in range(levels - 1):
        wire = field(1, field(1, b"k") + field(2, field(5, wire)))
    return wire


def encoded(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def decoded(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def build(kind: type[_M], **values: Any) -> _M:
    """Return a message built from plain values, which the type stubs do not allow."""
    return kind(**values)


def service(**changes: Any) -> Service:
    return build(Service, **{"name": "agent", "endpoint": "http://agent.test:8080", "version": "1.0.0", **changes})


def register(**changes: Any) -> pb.RegisterServiceRequest:
    return pb.RegisterServiceRequest(service=service(**changes))


def update(name: str, *paths: str, **changes: Any) -> pb.UpdateServiceRequest:
    return pb.UpdateServiceRequest(service=build(Service, name=name, **changes), update_mask=FieldMask(paths=paths))


def expecting(revision: int, name: str = "agent") -> pb.UpdateServiceRequest:
    return pb.UpdateServiceRequest(service=Service(name=name, version="2.0.0"), expected_revision=revision)


def discover(**filter_: Any) -> pb.DiscoverServicesRequest:
    return build(pb.DiscoverServicesRequest, filter=filter_)


def watch(**filter_: Any) -> pb.WatchEventsRequest:
    return build(pb.WatchEventsRequest, filter=filter_)


def resuming(cursor: Callable[[IssuedTokens], str]) -> Callable[[IssuedTokens], Message]:
    return lambda tokens: pb.WatchEventsRequest(cursor=cursor(tokens))


# The rows.


def named(id_: str, name: str) -> Iterator[Row]:
    """Yield a bad name in every request with a name."""
    for rpc, request in (
        ("GetService", pb.GetServiceRequest(name=name)),
        ("UnregisterService", pb.UnregisterServiceRequest(name=name)),
        ("GetServiceHealth", pb.GetServiceHealthRequest(name=name)),
        ("ReportServiceHealth", build(pb.ReportServiceHealthRequest, name=name, status=1)),
        ("CheckServiceHealth", pb.CheckServiceHealthRequest(name=name)),
    ):
        yield bad(f"name-{id_}", rpc, request, "name")
    yield bad(f"name-{id_}", "RegisterService", register(name=name), "service.name")
    yield bad(f"name-{id_}", "UpdateService", update(name, version="2"), "service.name")
    yield bad(f"name-{id_}", "Heartbeat", pb.HeartbeatRequest(names=["agent", name]), "names[1]")
    yield bad(f"name-{id_}", "KeepAlive", pb.KeepAliveRequest(names=[name, "agent"]), "names[0]")
    if name:  # an empty ``names`` is another error
        yield bad(f"group-{id_}", "RegisterService", register(group=name), "service.group")


def registrations() -> Iterator[Row]:
    for id_, endpoint in BAD_ENDPOINTS.items():
        yield bad(f"endpoint-{id_}", "RegisterService", register(endpoint=endpoint), "service.endpoint")
    for each in (*contents(), *capabilities(), *metadata(), *healths(), *health_checks()):
        yield bad(each.id, "RegisterService", register(**each.content), *(f"service.{at}" for at in each.fields))
    required = ("service.name", "service.endpoint", "service.version")
    yield bad("nothing", "RegisterService", b"", *required)
    yield bad("create-only-of-nothing", "RegisterService", pb.RegisterServiceRequest(create_only=True), *required)
    yield bad("200-kib", "RegisterService", register(capabilities=[large(200 << 10)]), "service")
    yield bad("1-mib", "RegisterService", register(capabilities=[large(1 << 20)]), "(request)")
    yield bad("1-byte-over-128-kib", "RegisterService", of_size(131_073), "service")
    yield bad(
        "too-large-and-bad",
        "RegisterService",
        register(name="", endpoint="", version="", capabilities=[large(200 << 10)]),
        *("service", *required),
    )
    yield bad("struct-deeper-than-parsers-go", "RegisterService", field(1, field(3, field(3, deep(500)))), "(request)")
    yield bad("name-not-utf-8", "RegisterService", field(1, field(1, b"\xff\xfe")), "(request)")
    yield bad("name-of-surrogates", "RegisterService", field(1, field(1, b"\xed\xa0\x80")), "(request)")
    yield bad("label-not-utf-8", "RegisterService", field(1, field(6, field(6, field(1, b"\xff")))), "(request)")


def contents() -> Iterator[Fault]:
    yield fault("version-empty", "version", version="")
    yield fault("version-too-long", "version", version="1" * 129)
    yield fault("version-line-break", "version", version="1.0.0\n")
    yield fault("version-nul", "version", version="1.0.0\0")
    yield fault("version-zero-width", "version", version="1.0\u200b.0")
    yield fault("version-right-to-left", "version", version="1.0\u202e.0")
    yield fault("ttl-below-5-s", "ttl", ttl=seconds(4, 999_999_999))
    yield fault("ttl-1-ns", "ttl", ttl=seconds(0, 1))
    yield fault("ttl-over-24-h", "ttl", ttl=seconds(86_400, 1))
    yield fault("ttl-negative", "ttl", ttl=seconds(-300))
    yield fault("ttl-signs-differ", "ttl", ttl=seconds(300, -1))
    yield fault("ttl-nanos-too-many", "ttl", ttl=seconds(300, 1_000_000_000))
    yield fault("ttl-largest", "ttl", ttl=seconds(2**63 - 1, 2**31 - 1))
    yield fault("ttl-smallest", "ttl", ttl=seconds(-(2**63), -(2**31)))
    yield fault(
        "all-at-once",
        *("name", "endpoint", "version", "group", "ttl", "capabilities[0].name", "capabilities[1].inputs"),
        *("metadata.tags[0]", "metadata.tags[2]", "metadata.author", 'metadata.labels["-"]', "health.status"),
        *("health.error", "health_check.interval", "health_check.timeout", "health_check.success_threshold"),
        "health_check.http.method",
        name="",
        endpoint="agent",
        version="",
        group="-",
        ttl=seconds(1),
        capabilities=[{"name": "-"}, {"name": "a", "inputs": plain({"a": math.nan})}],
        metadata={"tags": ["", "a", "a"], "author": "a" * 257, "labels": {"-": "a"}},
        health={"status": 99, "error": "a" * 1025},
        health_check={
            "interval": seconds(0),
            "timeout": seconds(0),
            "success_threshold": -1,
            "http": {"method": "get"},
        },
    )


def capabilities() -> Iterator[Fault]:
    def case(id_: str, *fields: str, **capability: Any) -> Fault:
        at = [f"capabilities[1].{field}" for field in fields]
        return fault(f"capability-{id_}", *at, capabilities=[{"name": "a"}, {"name": "b", **capability}])

    yield case("name-empty", "name", name="")
    yield case("name-too-long", "name", name=LONG)
    yield case("name-space", "name", name="to translate")
    yield case("name-slash-first", "name", name="/translate")
    yield case("name-line-break", "name", name="translate\n")
    yield case("name-not-ascii", "name", name="übersetzen")
    yield case("version-too-long", "version", version=LONG)
    yield case("version-tab", "version", version="1\t")
    yield case("description-too-long", "description", description="a" * 4097)
    yield case("inputs-nan", "inputs", inputs=plain({"maximum": math.nan}))
    yield case("inputs-negative-nan", "inputs", inputs=plain({"maximum": math.copysign(math.nan, -1)}))
    yield case("inputs-infinity", "inputs", inputs=plain({"maximum": math.inf}))
    yield case("outputs-minus-infinity", "outputs", outputs=plain({"minimum": -math.inf}))
    yield case("outputs-nan-within", "outputs", outputs=plain({"a": {"b": [1, {"c": [math.nan]}]}}))
    yield case("inputs-33-levels", "inputs", inputs=nested(33))
    yield case("outputs-33-lists", "outputs", outputs=nested_lists(33))
    yield case("both-schemas", "inputs", "outputs", inputs=plain({"a": math.nan}), outputs=plain({"a": math.inf}))
    yield fault("capabilities-257", "capabilities", capabilities=[{"name": f"c{i}"} for i in range(257)])
    yield fault("capability-twice", "capabilities[1]", capabilities=[{"name": "a"}, {"name": "a"}])
    yield fault(
        "capability-thrice",
        *("capabilities[2]", "capabilities[3]"),
        capabilities=[{"name": "a", "version": version} for version in ("1", "2", "1", "1")],
    )
    yield fault(
        "capabilities-64-bad",
        *(f"capabilities[{i}].name" for i in range(64)),
        capabilities=[{"name": f"a capability {i}"} for i in range(64)],
    )


def metadata() -> Iterator[Fault]:
    def case(id_: str, *fields: str, **metadata: Any) -> Fault:
        return fault(id_, *(f"metadata.{field}" for field in fields), metadata=metadata)

    yield case("tag-empty", "tags[0]", tags=[""])
    yield case("tag-too-long", "tags[1]", tags=["a", LONG])
    yield case("tag-comma", "tags[0]", tags=["a,b"])
    yield case("tag-line-break", "tags[0]", tags=["a\n"])
    yield case("tag-nul", "tags[0]", tags=["\0"])
    yield case("tag-twice", "tags[2]", tags=["a", "b", "a"])
    yield case("tags-65", "tags", tags=[f"t{i}" for i in range(65)])
    # The descriptions of the violations must not exceed the limit of clients.
    at = [f"tags[{i}]" for i in range(64)]
    yield case("tags-64-bad-not-ascii", *at, tags=[f"{'標' * 100},{i}" for i in range(64)])
    yield case("tags-64-bad-control-characters", *at, tags=["\x01" * 100 + str(i) for i in range(64)])
    yield case("description-too-long", "description", description="a" * 4097)
    yield case("author-too-long", "author", author="a" * 257)
    yield case("documentation-too-long", "documentation", documentation="a" * 2049)
    yield case("environment-too-long", "environment", environment=LONG)
    yield case("environment-escape", "environment", environment="\x1b[31mproduction")
    yield case("label-key-empty", 'labels[""]', labels={"": "a"})
    yield case("label-key-colon", 'labels["a:b"]', labels={"a:b": "a"})
    yield case("label-key-dash-first", 'labels["-a"]', labels={"-a": "a"})
    yield case("label-key-line-break", r'labels["a\n"]', labels={"a\n": "a"})
    yield case("label-key-too-long", f'labels["{"a" * 64}"]', labels={LONG: "a"})
    yield case("label-value-too-long", 'labels["a"]', labels={"a": "a" * 257})
    yield case("labels-65", "labels", labels={f"l{i}": "" for i in range(65)})


def healths() -> Iterator[Fault]:
    def case(id_: str, at: str, **health: Any) -> Fault:
        return fault(f"health-{id_}", f"health.{at}", health=health)

    yield case("status-6", "status", status=6)
    yield case("status-negative", "status", status=-1)
    yield case("status-largest", "status", status=2**31 - 1)
    yield case("last-check-too-late", "last_check", last_check=Timestamp(seconds=253_402_300_800))
    yield case("last-check-too-early", "last_check", last_check=Timestamp(seconds=-62_135_596_801))
    yield case("last-check-nanos-negative", "last_check", last_check=Timestamp(nanos=-1))
    yield case("last-check-nanos-too-many", "last_check", last_check=Timestamp(nanos=1_000_000_000))
    yield case("response-time-negative", "response_time", response_time=seconds(-1))
    yield case("response-time-signs-differ", "response_time", response_time=seconds(1, -1))
    yield case("response-time-too-long", "response_time", response_time=seconds(315_576_000_001))
    yield case("details-4097-bytes", "details", details=details_of(4097))
    yield case("details-nan", "details", details=plain({"load": math.nan}))
    yield case("details-33-levels", "details", details=nested(33))
    yield case("error-too-long", "error", error="a" * 1025)


def health_checks() -> Iterator[Fault]:
    def case(id_: str, *fields: str, **check: Any) -> Fault:
        return fault(f"check-{id_}", *(f"health_check.{field}" for field in fields), health_check=check)

    def http(id_: str, at: str, **probe: Any) -> Fault:
        return case(f"http-{id_}", f"http.{at}", http=probe)

    yield case("interval-below-1-s", "interval", interval=seconds(0, 999_999_999))
    yield case("interval-0", "interval", interval=seconds(0))
    yield case("interval-over-24-h", "interval", interval=seconds(86_400, 1))
    yield case("interval-signs-differ", "interval", interval=seconds(5, -5))
    yield case("timeout-below-10-ms", "timeout", timeout=seconds(0, 9_999_999))
    yield case("timeout-0", "timeout", timeout=seconds(0))
    yield case("timeout-over-5-min", "timeout", interval=seconds(3600), timeout=seconds(300, 1))
    yield case("timeout-over-interval", "timeout", interval=seconds(10), timeout=seconds(10, 1))
    yield case("degraded-after-below-1-ms", "degraded_after", degraded_after=seconds(0, 999_999))
    yield case("degraded-after-over-5-min", "degraded_after", degraded_after=seconds(300, 1))
    yield case("failure-threshold-negative", "failure_threshold", failure_threshold=-1)
    yield case("failure-threshold-101", "failure_threshold", failure_threshold=101)
    yield case("success-threshold-101", "success_threshold", success_threshold=101)
    yield case(
        "thresholds",
        *("failure_threshold", "success_threshold"),
        failure_threshold=2**31 - 1,
        success_threshold=-(2**31),
    )
    yield case("grpc-service-too-long", "grpc.service", grpc={"service": "a" * 257})
    yield http("path-relative", "path", path="health")
    yield http("path-of-another-host", "path", path="//elsewhere.test/health")
    yield http("path-a-url", "path", path="http://elsewhere.test/")
    yield http("path-line-break", "path", path="/health HTTP/1.1\r\nX: y")
    yield http("path-space", "path", path="/he alth")
    yield http("path-fragment", "path", path="/health#now")
    yield http("path-backslash", "path", path="/\\elsewhere.test")
    yield http("path-not-ascii", "path", path="/santé")
    yield http("path-too-long", "path", path="/" + "a" * 1024)
    yield http("method-lower-case", "method", method="get")
    yield http("method-unknown", "method", method="DELETE")
    yield http("method-line-break", "method", method="GET / HTTP/1.1\r\n")
    yield http("header-unnamed", 'headers[""]', headers={"": "a"})
    yield http("header-name-space", 'headers["x y"]', headers={"x y": "a"})
    yield http("header-name-colon", 'headers["x:"]', headers={"x:": "a"})
    yield http("header-value-line-break", 'headers["x"]', headers={"x": "a\r\ny: b"})
    yield http("header-value-nul", 'headers["x"]', headers={"x": "\0"})
    yield http("header-value-too-long", 'headers["x"]', headers={"x": "a" * 1025})
    yield http("headers-17", "headers", headers={f"x{i}": "" for i in range(17)})
    yield http("status-99", "expected_statuses[1]", expected_statuses=[200, 99])
    yield http("status-600", "expected_statuses[0]", expected_statuses=[600])
    yield http("status-negative", "expected_statuses[0]", expected_statuses=[-200])
    yield http("statuses-33", "expected_statuses", expected_statuses=[200] * 33)


def filters() -> Iterator[Fault]:
    for id_, pattern in BAD_PATTERNS.items():
        yield fault(f"pattern-{id_}", "name_pattern", name_pattern=pattern)
    for id_, text in BAD_VERSIONS.items():
        yield fault(f"version-{id_}", "version", version=text)
        yield fault(f"capability-version-{id_}", "capability_version", capability="c", capability_version=text)
    yield fault("version-of-no-capability", "capability_version", capability_version="1.0.0")
    yield fault("health-0", "health[0]", health=[0])
    yield fault("health-6", "health[1]", health=[1, 6])
    yield fault("health-negative", "health[0]", health=[-1])
    yield fault("health-several", "health[0]", "health[2]", health=[0, 1, 99])
    yield fault("health-9", "health", health=[1] * 9)
    yield fault("tag-empty", "tags[1]", tags=["a", ""])
    yield fault("tag-control-character", "tags[0]", tags=["a\x7f"])
    yield fault("tags-65", "tags", tags=[f"t{i}" for i in range(65)])
    yield fault("tag-match-3", "tag_match", tag_match=3)
    yield fault("tag-match-negative", "tag_match", tags=["a"], tag_match=-1)
    yield fault("environment-nul", "environment", environment="\0")
    yield fault("group-line-break", "group", group="a\n")
    yield fault("capability-tab", "capability", capability="a\t")
    yield fault("label-key-empty", 'labels[""]', labels={"": "a"})
    yield fault("label-key-space", 'labels["a b"]', labels={"a b": "a"})
    yield fault("label-key-quote", 'labels["it\'s"]', labels={"it's": "a"})
    yield fault("label-value-too-long", 'labels["a"]', labels={"a": "a" * 257})
    yield fault("labels-65", "labels", labels={f"l{i}": "" for i in range(65)})
    yield fault(
        "all-at-once",
        *("name_pattern", "capability_version", "health[0]", "tags[0]", "tag_match", "version", 'labels["-"]'),
        name_pattern="(",
        capability_version="1",
        health=[0],
        tags=[""],
        tag_match=9,
        version=">\n",
        labels={"-": ""},
    )


def reads() -> Iterator[Row]:
    for each in filters():
        at = [f"filter.{field}" for field in each.fields]
        yield bad(f"filter-{each.id}", "DiscoverServices", discover(**each.content), *at)
        yield bad(f"filter-{each.id}", "WatchEvents", watch(**each.content), *at)
    page = pb.DiscoverServicesRequest
    yield bad("page-size-negative", "DiscoverServices", page(page_size=-1), "page_size")
    yield bad("page-size-smallest", "DiscoverServices", page(page_size=-(2**31)), "page_size")
    yield bad("min-revision-negative", "DiscoverServices", page(min_revision=-1), "min_revision")
    yield bad("consistency-3", "DiscoverServices", build(page, consistency=3), "consistency")
    yield bad("consistency-negative", "DiscoverServices", build(page, consistency=-1), "consistency")
    for id_, token in BAD_TOKENS.items():
        yield bad(f"page-token-{id_}", "DiscoverServices", page(page_token=token), "page_token")
        yield bad(f"page-token-{id_}", "ListCapabilities", pb.ListCapabilitiesRequest(page_token=token), "page_token")
        yield bad(f"cursor-{id_}", "WatchEvents", pb.WatchEventsRequest(cursor=token), "cursor")
    yield bad(
        "all-at-once",
        "DiscoverServices",
        build(page, filter={"name_pattern": "("}, page_size=-1, page_token="?", min_revision=-1, consistency=9),
        *("filter.name_pattern", "page_size", "page_token", "min_revision", "consistency"),
    )
    yield bad("page-size-negative", "ListCapabilities", pb.ListCapabilitiesRequest(page_size=-1), "page_size")
    yield bad(
        "all-at-once",
        "ListCapabilities",
        pb.ListCapabilitiesRequest(page_size=-1, page_token="?"),
        *("page_size", "page_token"),
    )
    yield bad("min-revision-negative", "GetService", pb.GetServiceRequest(name="a", min_revision=-1), "min_revision")
    yield bad("all-at-once", "GetService", pb.GetServiceRequest(min_revision=-1), "name", "min_revision")
    yield Row(
        "GetService-min-revision-never-reached",
        "GetService",
        pb.GetServiceRequest(name="agent", min_revision=2**63 - 1),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        None,
        timeout=0.2,
    )
    yield Row(
        "DiscoverServices-min-revision-never-reached",
        "DiscoverServices",
        page(min_revision=2**63 - 1),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        None,
        timeout=0.2,
    )


def watches() -> Iterator[Row]:
    def case(id_: str, *fields: str, **request: Any) -> Row:
        return bad(id_, "WatchEvents", build(pb.WatchEventsRequest, **request), *fields)

    yield case("type-0", "types[0]", types=[0])
    yield case("type-8", "types[1]", types=[1, 8])
    yield case("type-negative", "types[0]", types=[-1])
    yield case("types-several", "types[0]", "types[2]", types=[0, 1, 99])
    yield case("type-after-many", "types[63]", types=[*[1] * 63, 99])
    yield case("types-65", "types", types=[1] * 65)
    yield case("bookmarks-99-ms", "bookmark_interval", bookmark_interval=seconds(0, 99_999_999))
    yield case("bookmarks-0", "bookmark_interval", bookmark_interval=seconds(0))
    yield case("bookmarks-over-1-h", "bookmark_interval", bookmark_interval=seconds(3600, 1))
    yield case("bookmarks-negative", "bookmark_interval", bookmark_interval=seconds(-1))
    yield case("bookmarks-signs-differ", "bookmark_interval", bookmark_interval=seconds(1, -1))
    yield case("bookmarks-largest", "bookmark_interval", bookmark_interval=seconds(2**63 - 1, 2**31 - 1))
    yield case(
        "all-at-once",
        *("filter.name_pattern", "types[0]", "cursor", "bookmark_interval"),
        filter={"name_pattern": "("},
        types=[0],
        cursor="?",
        bookmark_interval=seconds(0),
    )


def batches() -> Iterator[Row]:
    rpc, request = "BatchRegisterServices", pb.BatchRegisterServicesRequest
    yield bad("empty", rpc, request(), "services")
    yield bad("501", rpc, request(services=[small_service(f"a{i}") for i in range(501)]), "services")
    yield bad("501-bad", rpc, request(services=[Service()] * 501), "services")
    for rpc, names in (("Heartbeat", pb.HeartbeatRequest), ("KeepAlive", pb.KeepAliveRequest)):
        yield bad("empty", rpc, names(), "names")
        yield bad("10001-names", rpc, names(names=[f"a{i}" for i in range(10_001)]), "names")
        yield bad("10001-bad-names", rpc, names(names=[""] * 10_001), "names")
        yield bad("bad-names", rpc, names(names=["-", "agent", " "]), "names[0]", "names[2]")
        # An error contains at most a hundred violations.
        yield bad("10000-bad-names", rpc, names(names=[""] * 10_000), *(f"names[{i}]" for i in range(99)), "...")


def updates() -> Iterator[Row]:
    rpc = "UpdateService"
    for id_, path in BAD_PATHS.items():
        yield bad(f"path-{id_}", rpc, update("agent", path), "update_mask.paths[0]")
    yield bad("path-after-good-ones", rpc, update("agent", "version", "group", "owner"), "update_mask.paths[2]")
    yield bad("star-and-another", rpc, update("agent", "*", "version"), "update_mask.paths[0]")
    yield bad("another-and-star", rpc, update("agent", "version", "*"), "update_mask.paths[1]")
    yield bad("paths-100-bad", rpc, update("agent", *["-"] * 100), *(f"update_mask.paths[{i}]" for i in range(100)))
    yield bad("nothing", rpc, b"", "service.name")
    yield bad("mask-of-nothing", rpc, pb.UpdateServiceRequest(update_mask=FieldMask(paths=["version"])), "service.name")
    yield bad("expected-revision-negative", rpc, expecting(-1), "expected_revision")
    several = update("", "revision", "version", "?")
    several.expected_revision = -1
    yield bad(
        "all-at-once", rpc, several, "service.name", "update_mask.paths[0]", "update_mask.paths[2]", "expected_revision"
    )
    request = pb.UnregisterServiceRequest
    yield bad(
        "expected-revision-negative",
        "UnregisterService",
        request(name="agent", expected_revision=-1),
        "expected_revision",
    )
    yield bad("all-at-once", "UnregisterService", request(expected_revision=-1), "name", "expected_revision")


def reports() -> Iterator[Row]:
    def case(id_: str, *fields: str, **changes: Any) -> Row:
        request = build(pb.ReportServiceHealthRequest, **{"name": "agent", "status": 1, **changes})
        return bad(id_, "ReportServiceHealth", request, *fields)

    yield case("status-0", "status", status=0)
    yield case("status-6", "status", status=6)
    yield case("status-negative", "status", status=-1)
    yield case("details-4097-bytes", "details", details=details_of(4097))
    yield case("details-200-kib", "details", details=plain({"text": "a" * (200 << 10)}))
    yield case("details-1-mib", "(request)", details=plain({"text": "a" * (1 << 20)}))
    yield case("details-nan", "details", details=plain({"load": math.nan}))
    yield case("details-infinity", "details", details=plain({"load": [{"1m": -math.inf}]}))
    yield case("details-33-levels", "details", details=nested(33))
    yield case("error-too-long", "error", error="a" * 1025)
    yield case(
        "all-at-once",
        "name",
        "status",
        "details",
        "error",
        name="-",
        status=99,
        details=details_of(5000),
        error="a" * 1025,
    )
    yield bad(
        "details-deeper-than-parsers-go",
        "ReportServiceHealth",
        field(1, b"agent") + b"\x10\x01" + field(3, deep(500)),
        "(request)",
    )


def unknown_names() -> Iterator[Row]:
    for rpc, request in (
        ("GetService", pb.GetServiceRequest(name="missing")),
        ("UpdateService", update("missing", "version", version="2.0.0")),
        ("UnregisterService", pb.UnregisterServiceRequest(name="missing")),
        ("GetServiceHealth", pb.GetServiceHealthRequest(name="missing")),
        ("ReportServiceHealth", build(pb.ReportServiceHealthRequest, name="missing", status=1)),
        ("CheckServiceHealth", pb.CheckServiceHealthRequest(name="missing")),
    ):
        yield not_found("unknown-name", rpc, request)
    yield not_found("unknown-name-at-a-revision", "UpdateService", expecting(7, name="missing"))
    yield not_found(
        "unknown-name-at-a-revision",
        "UnregisterService",
        pb.UnregisterServiceRequest(name="missing", expected_revision=7),
    )
    yield not_found("another-case", "GetService", pb.GetServiceRequest(name="AGENT"))
    yield not_found("longest-name", "GetService", pb.GetServiceRequest(name="a" * 128))


def not_messages() -> Iterator[Row]:
    for rpc in RPCS:
        for id_, wire in NOT_MESSAGES.items():
            yield bad(f"bytes-{id_}", rpc, wire, "(request)")
    # gRPC answers these itself: they do not reach the registry.
    too_large = register(capabilities=[large(5 << 20)])
    yield Row("RegisterService-5-mib", "RegisterService", too_large, grpc.StatusCode.RESOURCE_EXHAUSTED, None)
    yield Row("unknown-rpc", "DropEverything", b"", grpc.StatusCode.UNIMPLEMENTED, None)


def _empty() -> Iterator[Row]:
    for id_, name in BAD_NAMES.items():
        yield from named(id_, name)
    yield from registrations()
    yield from reads()
    yield from watches()
    yield from batches()
    yield from updates()
    yield from reports()
    yield from unknown_names()
    yield from not_messages()


EMPTY: Final = tuple(_empty())


# A registry with services.

STOCK: Final = (
    small_service("agent", capabilities=[{"name": "translate"}, {"name": "summarise"}], ttl=seconds(0)),
    small_service("a" * 127 + "-", endpoint="http://agent.test", ttl=seconds(0)),
    small_service("z", ttl=seconds(0)),
)
STOCK_FILTER: Final = ServiceFilter(version="1.0.0")


def _stocked() -> Iterator[Row]:
    # The result of an update is validated.
    for each in (*contents(), *capabilities(), *metadata(), *healths(), *health_checks()):
        content = {key: value for key, value in each.content.items() if key != "name"}
        fields = [f"service.{at}" for at in each.fields if at != "name"]
        yield bad(f"{each.id}-in-place", "UpdateService", update("agent", *content, **content), *fields)
    for path in ("version", "endpoint"):
        yield bad(f"{path}-cleared", "UpdateService", update("agent", path), f"service.{path}")
    yield bad("everything-cleared", "UpdateService", update("agent", "*"), "service.endpoint", "service.version")
    yield bad("version-and-no-mask", "UpdateService", update("agent", version="1\n"), "service.version")
    within = update("agent", "health_check.http.path", health_check={"http": {"path": "?"}})
    yield bad("within-the-probe", "UpdateService", within, "service.health_check.http.path")

    mismatch = (grpc.StatusCode.ABORTED, "REVISION_MISMATCH")
    yield Row("UpdateService-at-another-revision", "UpdateService", expecting(2), *mismatch)
    yield Row("UpdateService-at-a-revision-to-come", "UpdateService", expecting(2**63 - 1), *mismatch)
    at_2 = pb.UnregisterServiceRequest(name="agent", expected_revision=2)
    yield Row("UnregisterService-at-another-revision", "UnregisterService", at_2, *mismatch)
    exists = (grpc.StatusCode.ALREADY_EXISTS, "SERVICE_EXISTS")
    again = pb.RegisterServiceRequest(service=service(version="2.0.0"), create_only=True)
    yield Row("RegisterService-create-only-of-one-that-exists", "RegisterService", again, *exists)
    identical = pb.RegisterServiceRequest(service=STOCK[0], create_only=True)
    yield Row("RegisterService-create-only-of-the-same", "RegisterService", identical, *exists)

    yield from _tokens()
    expired = (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
    for id_, cursor in (
        ("foreign", lambda tokens: tokens.foreign_cursor),
        ("of-an-unfinished-snapshot", lambda tokens: tokens.snapshot_cursor),
    ):
        yield Row(f"WatchEvents-cursor-{id_}", "WatchEvents", resuming(cursor), *expired)
    for id_, cursor in (
        ("cut", lambda tokens: tokens.cursor[:3]),
        ("doubled", lambda tokens: tokens.cursor * 2),
        ("decorated", lambda tokens: f" {tokens.cursor}"),
        ("page-token", lambda tokens: tokens.page_token),
    ):
        yield bad(f"cursor-{id_}", "WatchEvents", resuming(cursor), "cursor")
    for id_, plain_text in BAD_CURSORS.items():
        yield bad(f"cursor-of-{id_}", "WatchEvents", pb.WatchEventsRequest(cursor=encoded(plain_text)), "cursor")


def _tokens() -> Iterator[Row]:
    def page(id_: str, token: Callable[[IssuedTokens], str], filter_: ServiceFilter | None = STOCK_FILTER) -> Row:
        return bad(
            f"page-token-{id_}",
            "DiscoverServices",
            lambda tokens: pb.DiscoverServicesRequest(filter=filter_, page_token=token(tokens)),
            "page_token",
        )

    yield page("of-another-filter", lambda tokens: tokens.page_token, ServiceFilter(version="1.0.1"))
    yield page("without-its-filter", lambda tokens: tokens.page_token, None)
    yield page("of-capabilities", lambda tokens: tokens.capabilities_token)
    yield page("of-a-watch", lambda tokens: tokens.cursor)
    yield page(
        "first-letter-changed", lambda tokens: ("A" if tokens.page_token[0] != "A" else "B") + tokens.page_token[1:]
    )
    yield page("cut", lambda tokens: tokens.page_token[:9])
    yield page("with-a-space", lambda tokens: f"{tokens.page_token} ")
    yield page("repeated", lambda tokens: tokens.page_token + "=" + tokens.page_token)
    yield page("not-utf-8-behind", lambda tokens: encoded(decoded(tokens.page_token)[:8] + b"\xff\xfe"))
    yield bad(
        "page-token-of-services",
        "ListCapabilities",
        lambda tokens: pb.ListCapabilitiesRequest(page_token=tokens.page_token),
        "page_token",
    )


STOCKED: Final = tuple(_stocked())


def _benign() -> Iterator[tuple[str, str, Wire]]:
    for id_, pattern in COSTLY_PATTERNS.items():
        yield "DiscoverServices", f"pattern-{id_}", discover(name_pattern=pattern)
    yield "DiscoverServices", "nothing", b""
    # Values that may be registered may be queried.
    yield "DiscoverServices", "label-value-line-break", discover(labels={"a": "b\nc"})
    yield "DiscoverServices", "page-size-largest", pb.DiscoverServicesRequest(page_size=2**31 - 1)
    yield "DiscoverServices", "unknown-fields", field(15, b"from the future")
    yield "ListCapabilities", "nothing", b""
    yield "ListCapabilities", "page-size-largest", pb.ListCapabilitiesRequest(page_size=2**31 - 1)
    yield "GetStats", "unknown-fields", field(15, b"from the future")
    yield "GetRegistryHealth", "nothing", b""
    yield "Cleanup", "nothing", b""
    yield "Heartbeat", "10000-unknown-names", pb.HeartbeatRequest(names=[f"n{i}" for i in range(10_000)])
    yield "KeepAlive", "10000-times-one-name", pb.KeepAliveRequest(names=["missing"] * 10_000)
    yield "GetService", "unknown-fields", pb.GetServiceRequest(name="agent").SerializeToString() + field(15, b"x")
    yield "UpdateService", "mask-of-unchanged-fields", update("agent", "version", "name", version="1.0.0")


BENIGN: Final = tuple(Row(f"{rpc}-{id_}", rpc, request, OK, None) for rpc, id_, request in _benign())
"""Unusual but valid requests, which are answered quickly with OK."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthCheck, Service
from ossa_common.json_shape import MAX_STRUCT_DEPTH
from ossa_common.violations import MAX_VIOLATIONS, Violation
from registry_server.model import endpoints, rules
from registry_server.model.validation import (
    MAX_MASK_PATHS,
    name_violations,
    service_violations,
    status_violations,
    update_mask_violations,
)

Change = Callable[[Service], object]


def build_service(**fields: Any) -> Service:
    """Return a service from plain values, which protobuf accepts but its type stubs do not."""
    return Service(**fields)


def service() -> Service:
    """Return the example service of the OSSA reference implementation."""
    example = build_service(
        name="ai-text-processor",
        endpoint="https://ai-service.company.com:8080",
        version="2.1.0",
        capabilities=[
            {
                "name": "text-analysis",
                "version": "2.0.0",
                "description": "Advanced text analysis with sentiment detection",
            }
        ],
        metadata={"tags": ["ai", "nlp"], "environment": "production"},
        health={"status": "HEALTH_STATUS_UNKNOWN"},
    )
    example.health.last_check.FromSeconds(1_795_496_400)
    return example


def changed(change: Change) -> Service:
    example = service()
    change(example)
    return example


def fill(value: Value, levels: int, *, lists: bool = False) -> None:
    for _ in range(levels):
        value = value.list_value.values.add() if lists else value.struct_value.fields["k"]
    value.number_value = 1


def nested(levels: int, *, lists: bool = False) -> Struct:
    """Return a struct with this many levels, including the top one."""
    top = Struct()
    fill(top.fields["k"], levels - 1, lists=lists)
    return top


def setting(field: str, value: object) -> Change:
    def change(message: Service) -> None:
        *parents, last = field.split(".")
        target: object = message
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)

    return change


def endpoint(url: str) -> Change:
    return setting("endpoint", url)


def http(**fields: Any) -> Change:
    return lambda message: message.health_check.CopyFrom(HealthCheck(http=HealthCheck.HttpProbe(**fields)))


def check(**fields: Any) -> Change:
    return lambda message: message.health_check.CopyFrom(HealthCheck(**fields))


def label(key: str, value: str) -> Change:
    return lambda message: message.metadata.labels.update({key: value})


def capability(**fields: Any) -> Change:
    return lambda message: message.capabilities.add(**{"name": "extra", **fields})


def tag(*tags: str) -> Change:
    return lambda message: message.metadata.tags.extend(tags)


def number(value: float) -> Struct:
    struct = Struct()
    struct.update({"type": "object", "limits": {"steps": [1, {"top": value}]}})
    return struct


VALID: dict[str, Change] = {
    "example of the reference implementation": lambda _: None,
    "no capabilities": lambda message: message.ClearField("capabilities"),
    "name of one character": setting("name", "a"),
    "longest name": setting("name", "a" * 128),
    "all characters of names": setting("name", "9.a_B-@/c"),
    "name of a package": setting("name", "@acme/agent"),
    "name of a server in the MCP registry": setting("name", "io.github.acme/weather"),
    "name of a route": setting("name", "health"),
    "route before the last segment": setting("name", "a/health/b"),
    "group of a package": setting("group", "@acme/agents"),
    "endpoint with any scheme": endpoint("mcp://tools.company.com"),
    "endpoint with a compound scheme": endpoint("a2a+https://agents.company.com:8443/v1?x=1"),
    "endpoint of a file transfer": endpoint("ftp://host"),
    "group": setting("group", "text.processors"),
    "version that is not SemVer": setting("version", "build 7, Zürich"),
    "longest version": setting("version", "v" * 128),
    "all characters of capability names": capability(name="a.b_c:d/e-f"),
    "two versions of a capability": capability(name="text-analysis", version="2.0.1"),
    "256 capabilities": lambda message: [message.capabilities.add(name=f"c{index}") for index in range(255)],
    "longest description": capability(description="d" * 4_096),
    "schema of 32 levels": capability(inputs=nested(32), outputs=nested(32, lists=True)),
    "schema of a plain object with the key fields": capability(inputs={"fields": {"type": "object"}}),
    "schema with fields beside another key": capability(inputs={"fields": {}, "type": "object"}),
    "schema that looks deep on the wire": capability(inputs={"*2" * 40: "2" * 40}),
    "schema that looks infinite on the wire": capability(inputs={"a": "\x7f" * 3, "b": 2.0**1000}),
    "64 tags": lambda message: message.metadata.tags.extend(f"t{index}" for index in range(62)),
    "longest tag": tag("t" * 128),
    "tag with spaces": tag("natural language"),
    "64 labels": lambda message: message.metadata.labels.update({f"l{index}": "" for index in range(64)}),
    "label": label("team.example/owner_1-x", "v" * 256),
    "text with line breaks": setting("metadata.description", "two\nlines"),
    "longest metadata": lambda message: message.metadata.MergeFrom(
        build_service(metadata={"author": "a" * 256, "documentation": "d" * 2_048, "environment": "e" * 128}).metadata
    ),
    "health without a status": setting("health.status", 0),
    "health in maintenance": setting("health.status", 5),
    "longest error": setting("health.error", "e" * 1_024),
    "details": lambda message: message.health.details.update({"queue": 5, "note": "n" * 4_000}),
    "last nanosecond of last_check": setting("health.last_check.nanos", 999_999_999),
    "response time of zero": lambda message: message.health.response_time.SetInParent(),
    "permanent": lambda message: message.ttl.SetInParent(),
    "shortest ttl": setting("ttl.seconds", 5),
    "longest ttl": setting("ttl.seconds", 86_400),
    "http probe": http(
        path="/health?full=1",
        method="POST",
        headers={"X-Probe": "a b\tc", "!#$%&'*+.^_`|~-": "ü"},
        expected_statuses=[100, 204, 599],
    ),
    "empty http probe": http(),
    "longest path": http(path="/" + "p" * 1_023),
    "virtual host": http(headers={"Host": "vhost.internal:8080", "Authorization": "Bearer x", "TE-X": "a"}),
    "16 headers": http(headers={f"X-{index}": "v" * 1_024 for index in range(16)}),
    "32 expected statuses": http(expected_statuses=range(200, 232)),
    "grpc probe": check(grpc={"service": "s" * 256}),
    "tcp probe": check(tcp={}),
    "heartbeat probe": check(heartbeat={}),
    "no probe": check(none={}),
    "shortest check": check(
        interval={"seconds": 1}, timeout={"nanos": 10_000_000}, degraded_after={"nanos": 1_000_000}
    ),
    "longest check": check(interval={"seconds": 86_400}, timeout={"seconds": 300}, degraded_after={"seconds": 300}),
    "timeout of one interval": check(interval={"seconds": 5}, timeout={"seconds": 5}),
    "thresholds": check(failure_threshold=100, success_threshold=1),
    "output-only fields with any values": lambda message: message.MergeFrom(
        build_service(
            registered_at={"seconds": 2**62, "nanos": -1},
            updated_at={"nanos": 2**31 - 1},
            revision=-5,
            health={"status_changed_at": {"seconds": -(2**62)}},
        )
    ),
}

_1025, _4097 = "x" * 1_025, "x" * 4_097

EMPTY: tuple[Any, ...] = (None, {}, [])
INVALID: list[tuple[str, Change, str, str]] = [
    ("no name", setting("name", ""), "service.name", "is required"),
    ("name with a space", setting("name", "bad name"), "service.name",
     "'bad name' is not a name: 1 to 128 characters of"),
    ("name that begins with a dot", setting("name", ".hidden"), "service.name", "starting with a letter, digit or @"),
    ("name with an empty segment", setting("name", "a//b"), "service.name", "has an empty segment"),
    ("name with a slash at its end", setting("name", "@acme/"), "service.name", "has an empty segment"),
    ("name with a segment of dots", setting("name", "a/../b"), "service.name", "between slashes"),
    ("name like the path of a route", setting("name", "a/health"), "service.name", "ends in a reserved segment"),
    ("name with a line break at its end", setting("name", "name\n"), "service.name", r"'name\n' is not a name"),
    ("name in other letters", setting("name", "größe"), "service.name", "is not a name"),
    ("name with other digits", setting("name", "a\uff11"), "service.name", "is not a name"),
    ("name too long", setting("name", "n" * 129), "service.name", f"'{'n' * 64}'... is not a name"),
    ("bad group", setting("group", "a:b"), "service.group", "is not a name"),
    ("no version", setting("version", ""), "service.version", "is required"),
    ("version too long", setting("version", "v" * 129), "service.version", "has 129 characters; at most 128"),
    ("version with a line break", setting("version", "1\n"), "service.version", "control"),
    ("too many capabilities",
     lambda message: [message.capabilities.add(name=f"c{index}") for index in range(256)],
     "service.capabilities", "has 257 capabilities; at most 256 are allowed"),
    ("capability without a name", capability(name=""), "service.capabilities[1].name", "is required"),
    ("bad capability name", capability(name="a b"), "service.capabilities[1].name", "is not a capability name"),
    ("capability name too long", capability(name="c" * 129), "service.capabilities[1].name", "1 to 128"),
    ("capability version too long", capability(version="v" * 129), "service.capabilities[1].version", "at most 128"),
    ("capability version with a tab", capability(version="1\t2"), "service.capabilities[1].version", "control"),
    ("capability described too long", capability(description=_4097), "service.capabilities[1].description", "4096"),
    ("capability twice", capability(name="text-analysis", version="2.0.0"), "service.capabilities[1]",
     "has the name and version of capabilities[0]"),
    ("capability twice without versions",
     lambda message: [message.capabilities.add(name="same") for _ in range(2)],
     "service.capabilities[2]", "capabilities[1]"),
    ("inputs too deep", capability(inputs=nested(33)), "service.capabilities[1].inputs", "more than 32 levels"),
    ("outputs too deep", capability(outputs=nested(33, lists=True)), "service.capabilities[1].outputs", "32 levels"),
    ("infinite input", capability(inputs=number(math.inf)), "service.capabilities[1].inputs",
     "the number at 'limits/steps/1/top' is inf"),
    ("minus infinity", capability(inputs=number(-math.inf)), "service.capabilities[1].inputs", "is -inf"),
    ("output that is no number", capability(outputs=number(math.nan)), "service.capabilities[1].outputs", "is nan"),
    ("too many tags",
     lambda message: message.metadata.tags.extend(f"t{index}" for index in range(63)),
     "service.metadata.tags", "has 65 tags; at most 64 are allowed"),
    ("empty tag", tag(""), "service.metadata.tags[2]", "is empty"),
    ("tag too long", tag("t" * 129), "service.metadata.tags[2]", "at most 128"),
    ("tag with a comma", tag("a,b"), "service.metadata.tags[2]", "contains a comma"),
    ("tag with a control character", tag("a\x00"), "service.metadata.tags[2]", "control"),
    ("tag twice", tag("ai"), "service.metadata.tags[2]", "'ai' is a duplicate of tags[0]"),
    ("too many labels",
     lambda message: message.metadata.labels.update({f"l{index}": "" for index in range(65)}),
     "service.metadata.labels", "has 65 labels; at most 64 are allowed"),
    ("bad label key", label("bad key", "v"), 'service.metadata.labels["bad key"]', "is not a label key"),
    ("empty label key", label("", "v"), 'service.metadata.labels[""]', "is required"),
    ("label key too long", label("k" * 129, "v"), f'service.metadata.labels["{"k" * 64}"]', "1 to 128"),
    ("label value too long", label("k", "v" * 257), 'service.metadata.labels["k"]', "at most 256"),
    ("described too long", setting("metadata.description", _4097), "service.metadata.description", "at most 4096"),
    ("author too long", setting("metadata.author", "a" * 257), "service.metadata.author", "at most 256"),
    ("documentation too long", setting("metadata.documentation", "d" * 2_049),
     "service.metadata.documentation", "at most 2048"),
    ("environment too long", setting("metadata.environment", "e" * 129), "service.metadata.environment", "at most 128"),
    ("environment with a line break", setting("metadata.environment", "a\n"),
     "service.metadata.environment", "control"),
    ("unknown status", setting("health.status", 6), "service.health.status",
     "6 is not a known status; use one of HEALTHY, UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE"),
    ("negative status", setting("health.status", -1), "service.health.status", "not a known status"),
    ("last check before the year 1", setting("health.last_check.seconds", -62_135_596_801),
     "service.health.last_check", "not a valid timestamp"),
    ("last check after the year 9999", setting("health.last_check.seconds", 253_402_300_800),
     "service.health.last_check", "not a valid timestamp"),
    ("last check of negative nanos", setting("health.last_check.nanos", -1), "service.health.last_check", "timestamp"),
    ("negative response time", setting("health.response_time.nanos", -1), "service.health.response_time",
     "must be at least 0 s"),
    ("invalid response time", setting("health.response_time.nanos", 10**9), "service.health.response_time",
     "not a valid duration"),
    ("details too large", lambda message: message.health.details.update({"a": "x" * 4_096}),
     "service.health.details", "at most 4096 are allowed"),
    ("infinite detail", lambda message: message.health.details.update({"load": math.inf}),
     "service.health.details", "the number at 'load' is inf"),
    ("details too deep", lambda message: message.health.details.CopyFrom(nested(33)),
     "service.health.details", "32 levels"),
    ("error too long", setting("health.error", _1025), "service.health.error", "at most 1024"),
    ("ttl too short", setting("ttl.seconds", 4), "service.ttl", "is 4 s; must be from 5 s to 24 h, or 0 s = permanent"),
    ("ttl hardly there", setting("ttl.nanos", 1), "service.ttl", "is 1e-09 s; must be"),
    ("ttl too long", setting("ttl.seconds", 86_401), "service.ttl", "is 86401 s"),
    ("negative ttl", setting("ttl.seconds", -5), "service.ttl", "is -5 s"),
    ("ttl of two signs",
     lambda message: message.ttl.MergeFrom(Duration(seconds=10, nanos=-1)), "service.ttl", "not a valid duration"),
    ("ttl past all bounds", setting("ttl.seconds", 2**62), "service.ttl", "not a valid duration"),
    ("relative path", http(path="health"), "service.health_check.http.path", "is not an absolute path"),
    ("path to another host", http(path="//evil.example/"), "service.health_check.http.path", "start it with one slash"),
    ("path with a space", http(path="/a b"), "service.health_check.http.path", "has ' ' at position 2"),
    ("path with a line break", http(path="/a\r\nHost: b"), "service.health_check.http.path", r"has '\r' at position 2"),
    ("path with a fragment", http(path="/a#b"), "service.health_check.http.path", "has '#'"),
    ("path too long", http(path="/" + "p" * 1_024), "service.health_check.http.path", "at most 1024"),
    ("unknown method", http(method="DELETE"), "service.health_check.http.method",
     "'DELETE' is not one of GET, HEAD, POST"),
    ("method in lower case", http(method="get"), "service.health_check.http.method", "'get'"),
    ("too many headers", http(headers={f"X-{index}": "v" for index in range(17)}),
     "service.health_check.http.headers", "has 17 headers; at most 16 are allowed"),
    ("header name with a space", http(headers={"bad header": "v"}),
     'service.health_check.http.headers["bad header"]', "is not an HTTP header name"),
    ("empty header name", http(headers={"": "v"}), 'service.health_check.http.headers[""]', "HTTP header name"),
    *(
        (f"header {name}", http(headers={name: value}),
         f"service.health_check.http.headers[{json.dumps(name)}]", "frames the request or concerns its connection")
        for name, value in (
            ("Transfer-Encoding", "chunked"), ("transfer-encoding", "gzip, chunked"), ("Content-Length", "5"),
            ("Connection", "keep-alive"), ("Expect", "100-continue"), ("UPGRADE", "h2c"), ("HTTP2-Settings", ""),
            ("TE", "trailers"), ("Trailer", "X-A"), ("Keep-Alive", "timeout=5"), ("Proxy-Connection", "close"),
            ("Proxy-Authorization", "Basic a"),
        )
    ),
    *(
        (f"Host {value!r}", http(headers={"Host": value}), 'service.health_check.http.headers["Host"]', reason)
        for value, reason in (
            ("", "is not a host"), ("a b", "is not a host"), ("a,b", "is not a host"), ("http://a", "is not a port"),
            ("u@a", "is not a host"), ("a:0", "is not a port"), ("[::1", "IPv6 address in brackets"),
        )
    ),
    ("pseudo header", http(headers={":authority": "a"}),
     'service.health_check.http.headers[":authority"]', "header name"),
    ("repeated header", http(headers={"host": "a", "Host": "b"}),
     'service.health_check.http.headers["host"]', "same header"),
    ("header of two lines", http(headers={"x": "a\r\nb: c"}), 'service.health_check.http.headers["x"]', "line breaks"),
    ("header too long", http(headers={"x": _1025}), 'service.health_check.http.headers["x"]', "at most 1024"),
    ("too many statuses", http(expected_statuses=range(200, 233)),
     "service.health_check.http.expected_statuses", "has 33 status codes; at most 32 are allowed"),
    ("status too low", http(expected_statuses=[200, 99]),
     "service.health_check.http.expected_statuses[1]", "99 is not"),
    ("status too high", http(expected_statuses=[600]), "service.health_check.http.expected_statuses[0]", "100 to 599"),
    ("grpc service too long", check(grpc={"service": "s" * 257}), "service.health_check.grpc.service", "at most 256"),
    ("interval too short", check(interval={"nanos": 999_999_999}), "service.health_check.interval",
     "is 0.999999999 s; must be from 1 s to 24 h"),
    ("interval of zero", check(interval={}), "service.health_check.interval", "is 0 s"),
    ("interval too long", check(interval={"seconds": 86_401}), "service.health_check.interval", "to 24 h"),
    ("timeout too short", check(timeout={"nanos": 9_999_999}), "service.health_check.timeout", "from 10 ms to 5 min"),
    ("timeout too long", check(timeout={"seconds": 301}), "service.health_check.timeout", "to 5 min"),
    ("timeout longer than interval", check(interval={"seconds": 5}, timeout={"seconds": 5, "nanos": 1}),
     "service.health_check.timeout", "is longer than `interval`"),
    ("degraded too soon", check(degraded_after={"nanos": 999_999}), "service.health_check.degraded_after", "from 1 ms"),
    ("degraded too late", check(degraded_after={"seconds": 301}), "service.health_check.degraded_after", "to 5 min"),
    ("negative threshold", check(failure_threshold=-1), "service.health_check.failure_threshold", "is -1"),
    ("threshold too high", check(success_threshold=101), "service.health_check.success_threshold", "1 to 100"),
    *(
        (f"plain object as Struct: {value!r}", capability(inputs={"fields": value}),
         "service.capabilities[1].inputs", 'has only the key "fields", without content')
        for value in EMPTY
    ),
    ("service too large", lambda message: message.capabilities.add(name="big", inputs={"a": "x" * 131_072}),
     "service", "at most 131072 are allowed"),
]  # fmt: skip


@pytest.mark.parametrize("change", VALID.values(), ids=VALID.keys())
def test_valid_service_is_accepted(change: Change) -> None:
    assert service_violations(changed(change)) == []


@pytest.mark.parametrize(("change", "field", "reason"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID])
def test_invalid_service_is_refused_with_field_and_reason(change: Change, field: str, reason: str) -> None:
    violations = service_violations(changed(change))
    assert [violation.field for violation in violations] == [field]
    assert reason in violations[0].description


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "HTTPS://Host.Example.COM/",
        "grpc://agent:50051",
        "grpcs://agent:50051",
        "tcp://10.0.0.1:6379",
        "ws://agent/socket",
        "wss://agent:443/socket?x=1",
        "http://my_service.internal:8080",
        "http://xn--gre-6ka8i.example",
        "http://host.example.",
        "http://127.0.0.1:1",
        "http://[::1]",
        "http://[2001:db8::7]:65535/path",
        "tcp://[::1]:80",
        f"http://{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}",
        "http://host/" + "p" * (2_048 - 12),
    ],
)
def test_valid_endpoint_is_accepted(url: str) -> None:
    assert service_violations(changed(endpoint(url))) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is required"),
        ("http://host/" + "p" * (2_049 - 12), "has 2049 characters"),
        ("host:8080", "has no scheme; write 'http://host:8080'"),
        ("agent.company.com:8080/v1", "has no scheme; write 'http://agent.company.com:8080/v1'"),
        ("[::1]:8080", "has no scheme; write 'http://[::1]:8080'"),
        ("urn:agents:one", "has no host"),
        ("javascript:alert(1)", "must not have the scheme javascript"),
        ("FILE://host/etc/passwd", "must not have the scheme file"),
        ("data:text/html,x", "must not have the scheme data"),
        ("vbscript://host", "must not have the scheme vbscript"),
        ("/path", "has no scheme"),
        ("//host/path", "has no scheme"),
        ("host", "has no scheme"),
        ("http:", "has no host"),
        ("http:host", "has no host"),
        ("http:/host", "has no host"),
        ("http://", "has no host"),
        ("http:///path", "has no host"),
        ("http://:8080", "'' is not a host"),
        ("http://user@host", "contains a user name or password"),
        ("http://user:secret@host", "contains a user name or password"),
        ("http://@host", "contains a user name or password"),
        ("http://host\n", r"has '\n' at position 11"),
        (" http://host", "has ' ' at position 0"),
        ("http://ho st", "has ' '"),
        ("http://host\\path", r"has '\\'"),
        ("http://h\u00f6st", "has 'ö'"),
        ("http://host/\x7f", "position 12"),
        ("http://-host", "is not a host"),
        ("http://host-", "is not a host"),
        ("http://a..b", "is not a host"),
        ("http://.a", "is not a host"),
        ("http://a%20b", "is not a host"),
        ("http://" + "a" * 64, "is not a host"),
        (f"http://{'a.' * 128}", "is not a host"),
        ("http://256.0.0.1", "is not a host"),
        ("http://1.2.3", "is not a host"),
        ("http://0177.0.0.1", "is not a host"),
        ("http://0x7f000001", "is not a host"),
        ("http://2130706433", "is not a host"),
        ("http://::1", "is not a host"),
        ("http://[::1", "IPv6"),
        ("http://[::g]", "IPv6"),
        ("http://[fe80::1%25eth0]", "IPv6"),
        ("http://[127.0.0.1]", "IPv6"),
        ("http://[]", "IPv6"),
        ("http://[::1]x", "is not a"),
        ("http://host:", "'' is not a port: 1 to 65535"),
        ("http://host:0", "is not a port"),
        ("http://host:65536", "is not a port"),
        ("http://host:-1", "is not a port"),
        ("http://host:80a", "is not a port"),
        ("http://host:080000", "is not a port"),
        ("http://host:1:2", "is not a port"),
        ("http://[::1]:", "is not a port"),
        ("tcp://host", "has no port"),
        ("tcp://[::1]", "has no port"),
    ],
)
def test_invalid_endpoint_is_refused_with_a_reason(url: str, reason: str) -> None:
    violations = service_violations(changed(endpoint(url)))
    assert [violation.field for violation in violations] == ["service.endpoint"]
    assert reason in violations[0].description
    assert "secret" not in violations[0].description


def test_all_violations_are_reported_under_the_given_path() -> None:
    bad = build_service(
        endpoint="nowhere",
        group=" ",
        capabilities=[{"name": "?"}, {"name": "ok", "description": _4097}],
        metadata={"tags": ["a,b"], "labels": {"z z": "", "a a": ""}},
        health={"status": 77},
        health_check={"failure_threshold": -1, "http": {"method": "PUT"}},
        ttl={"seconds": 1},
    )
    assert [violation.field for violation in service_violations(bad, "services[3]")] == [
        "services[3].name",
        "services[3].endpoint",
        "services[3].version",
        "services[3].group",
        "services[3].capabilities[0].name",
        "services[3].capabilities[1].description",
        "services[3].metadata.tags[0]",
        'services[3].metadata.labels["a a"]',
        'services[3].metadata.labels["z z"]',
        "services[3].health.status",
        "services[3].health_check.http.method",
        "services[3].health_check.failure_threshold",
        "services[3].ttl",
    ]


def test_number_of_violations_is_limited() -> None:
    bad = build_service(
        capabilities=[{"version": "\n"}] * 1_000,
        metadata={"tags": [","] * 1_000, "labels": {" " * n: "" for n in range(200)}},
    )
    assert len(service_violations(bad)) < 1_000


def test_number_of_violations_in_a_struct_is_limited() -> None:
    many = Struct()
    many.update({"a": [math.nan] * 2_000})
    assert len(service_violations(changed(capability(inputs=many)))) == MAX_VIOLATIONS + 1


def test_struct_deeper_than_parsers_accept_is_refused() -> None:
    message = service()
    fill(message.capabilities[0].inputs.fields["k"], 500)
    (violation,) = service_violations(message)
    assert violation.field == "service.capabilities[0].inputs"


def test_output_only_fields_do_not_count_towards_the_size() -> None:
    message = service()
    schema = message.capabilities[0].inputs.fields["a"]
    schema.string_value = "x" * 120_000
    schema.string_value += "x" * (131_072 - message.ByteSize())
    assert message.ByteSize() == 131_072
    assert service_violations(message) == []
    message.revision = 2**40
    message.registered_at.GetCurrentTime()
    message.health.status_changed_at.GetCurrentTime()
    before = message.SerializeToString(deterministic=True)
    assert service_violations(message) == []
    assert message.SerializeToString(deterministic=True) == before
    message.group = "one-more"
    assert [violation.field for violation in service_violations(message)] == ["service"]


@pytest.mark.parametrize("lists", [False, True])
def test_deepest_struct_can_be_parsed_inside_a_watch_response(lists: bool) -> None:  # noqa: FBT001
    message = service()
    message.capabilities[0].inputs.CopyFrom(nested(MAX_STRUCT_DEPTH, lists=lists))
    answer = WatchEventsResponse(events=[Event(service=message)])
    assert WatchEventsResponse.FromString(answer.SerializeToString()) == answer


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def has_infinite(value: object) -> bool:
    match value:
        case float():
            return not math.isfinite(value)
        case list():
            return any(map(has_infinite, value))
        case dict():
            return any(map(has_infinite, value.values()))
        case _:
            return False


def details_violations(details: Struct) -> list[Violation]:
    violations: list[Violation] = []
    rules.check_details(details, "details", violations)
    return violations


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_infinite_number_is_found_anywhere_in_a_struct(content: dict[str, Any]) -> None:
    struct = Struct()
    struct.update(content)
    assert bool(details_violations(struct)) == has_infinite(content)


@given(st.integers(1, 60), st.booleans())
def test_quick_depth_check_agrees_with_the_walk(levels: int, lists: bool) -> None:  # noqa: FBT001
    struct = nested(levels, lists=lists)
    assert bool(details_violations(struct)) == (levels > MAX_STRUCT_DEPTH)


def test_value_without_a_kind_is_valid() -> None:
    assert details_violations(Struct(fields={"a": Value()})) == []


@given(st.binary(max_size=300))
def test_any_parsed_bytes_are_validated(wire: bytes) -> None:
    message = Service()
    try:
        message.MergeFromString(wire)
    except Exception:  # noqa: BLE001 - messages that cannot be parsed are never validated
        return
    assert all(isinstance(violation, Violation) for violation in service_violations(message))


@given(st.text(), st.text(), st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text()))
def test_any_text_is_validated_with_short_violations(
    name: str, url: str, version: str, tags: list[str], labels: dict[str, str]
) -> None:
    message = build_service(
        name=name,
        endpoint=url,
        version=version,
        metadata={"tags": tags, "labels": labels},
        capabilities=[{"name": tag, "version": name} for tag in tags],
        health_check={"http": {"path": url, "method": version, "headers": labels}},
    )
    for violation in service_violations(message):
        assert len(violation.field) < 500
        assert 0 < len(violation.description) < 1_000
        violation.field.encode()
        violation.description.encode()


@given(st.from_regex(r"\A(https?|tcp|ws)://[a-z0-9.:\[\]@%/?#-]*\Z"))
def test_any_endpoint_has_at_most_one_violation(url: str) -> None:
    found: list[Violation] = []
    endpoints.check_endpoint(url, "endpoint", found)
    assert len(found) <= 1


def test_name_violations() -> None:
    assert name_violations("agent-1", "name") == []
    assert [violation.field for violation in name_violations("", "name")] == ["name"]
    assert [violation.field for violation in name_violations("a b", "names[7]")] == ["names[7]"]


@pytest.mark.parametrize(("status", "reason"), [(0, "is required"), (6, "6 is not a known status")])
def test_reported_status_must_be_set_and_known(status: int, reason: str) -> None:
    (violation,) = status_violations(status, "status")
    assert reason in violation.description
    assert status_violations(1, "status") == []


def test_text_must_be_within_its_limit() -> None:
    violations: list[Violation] = []
    rules.check_length("e" * 1_024, "error", 1_024, violations)
    assert violations == []
    rules.check_length("e" * 1_025, "error", 1_024, violations)
    assert violations == [Violation("error", "has 1025 characters; at most 1024 are allowed")]


@pytest.mark.parametrize(
    ("duration", "valid"),
    [
        (Duration(nanos=100_000_000), True),
        (Duration(seconds=3_600), True),
        (Duration(nanos=99_999_999), False),
        (Duration(seconds=3_600, nanos=1), False),
        (Duration(seconds=-1), False),
        (Duration(seconds=1, nanos=-1), False),
    ],
    ids=repr,
)
def test_duration_must_be_within_its_limits(duration: Duration, valid: bool) -> None:  # noqa: FBT001
    violations: list[Violation] = []
    limits = timedelta(milliseconds=100), timedelta(hours=1)
    rules.check_duration(duration, "bookmark_interval", *limits, violations)
    assert [violation.field for violation in violations] == ([] if valid else ["bookmark_interval"])


GOOD_PATHS = [
    "name",
    "endpoint",
    "capabilities",
    "version",
    "health",
    "health.status",
    "health.last_check",
    "health.details",
    "metadata",
    "metadata.tags",
    "metadata.labels",
    "group",
    "health_check",
    "health_check.http",
    "health_check.http.path",
    "health_check.http.headers",
    "health_check.tcp",
    "health_check.interval",
    "ttl",
]


def test_valid_masks_are_accepted() -> None:
    assert update_mask_violations(FieldMask(paths=GOOD_PATHS)) == []
    assert update_mask_violations(FieldMask(paths=["*"])) == []
    assert update_mask_violations(FieldMask()) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("registered_at", "is output only"),
        ("registered_at.seconds", "is output only"),
        ("updated_at", "is output only"),
        ("revision", "is output only"),
        ("health.status_changed_at", "is output only"),
        ("health.status_changed_at.nanos", "is output only"),
        ("", "is not a field"),
        (".", "is not a field"),
        ("name.", "is inside 'name'"),
        (".name", "is not a field"),
        ("nonsense", "is not a field"),
        ("healthCheck", "is not a field"),
        ("health_check.probe", "is not a field"),
        ("health_check.http.nonsense", "is not a field"),
        ("metadata.nonsense.deeper", "is not a field"),
        ("health_check.tcp.port", "is not a field"),
        ("capabilities.name", "is inside 'capabilities', which can only be replaced as a whole"),
        ("capabilities[0]", "is not a field"),
        ("metadata.labels.team", "is inside 'metadata.labels'"),
        ("metadata.tags.0", "is inside 'metadata.tags'"),
        ("ttl.seconds", "is inside 'ttl'"),
        ("health.last_check.seconds", "is inside 'health.last_check'"),
        ("health.details.fields", "is inside 'health.details'"),
        ("health_check.http.headers.x.y", "is inside 'health_check.http.headers'"),
        ("version.major", "is inside 'version'"),
        ("*", "must be the only path"),
        ("x" * 10_000 + "." * 100_000, "'... is not a field"),
    ],
)
def test_invalid_path_of_a_mask_is_refused_with_a_reason(path: str, reason: str) -> None:
    (violation,) = update_mask_violations(FieldMask(paths=["version", path, "name"]))
    assert violation.field == "update_mask.paths[1]"
    assert reason in violation.description
    assert len(violation.description) < 200


def test_each_invalid_path_is_one_violation() -> None:
    bad = update_mask_violations(FieldMask(paths=["a", "version", "b"]), "request.mask")
    assert [violation.field for violation in bad] == ["request.mask.paths[0]", "request.mask.paths[2]"]


def test_mask_with_too_many_paths_is_one_violation() -> None:
    assert update_mask_violations(FieldMask(paths=["ttl"] * MAX_MASK_PATHS)) == []
    (violation,) = update_mask_violations(FieldMask(paths=["ttl"] * (MAX_MASK_PATHS + 1)))
    assert violation == ("update_mask.paths", "has 129 paths; at most 128 are allowed")


@given(st.lists(st.text(), max_size=5))
def test_any_mask_is_validated(paths: list[str]) -> None:
    assert len(update_mask_violations(FieldMask(paths=paths))) <= len(paths)

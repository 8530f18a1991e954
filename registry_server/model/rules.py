"""Validation rules for single values: names, text, durations, structs.

Every function appends its violations to ``found``. Registration is a hot path, so a whole message shares one list.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from ossa_common.json_shape import MAX_DURATION_SECONDS, MAX_STRUCT_DEPTH
from ossa_common.violations import MAX_VIOLATIONS, Violation, quoted

T = TypeVar("T")

HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

MAX_ERROR_LENGTH: Final = 1_024
MAX_DETAILS_BYTES: Final = 4_096


_NANOS = 1_000_000_000
# Range of the well-known type: https://protobuf.dev/reference/protobuf/google.protobuf
_MIN_TIMESTAMP_SECONDS, _MAX_TIMESTAMP_SECONDS = -62_135_596_800, 253_402_300_799

_NOT_IN_PATH = re.compile(r"[^\x21-\x7e]|[\\#]")
_NOT_IN_HEADER_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING_HEADERS: Final = frozenset(
    {"connection", "content-length", "expect", "http2-settings", "keep-alive"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
_INSTANCE_ID = re.compile(r"[\x21-\x7e]{1,64}")
_PORT = re.compile(r"[0-9]{1,5}")
# RFC 952 does not allow underscores in host names, but container networks use them.
_HOST_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?:{_HOST_LABEL}\.)*{_HOST_LABEL}\.?")
_MAX_HOST_LENGTH = 253
_MAX_CACHED_HOSTS: Final = 1_024
"""IP addresses whose check is cached: it takes 3 µs, and services share hosts."""
# Resolvers and browsers parse a host that ends in a number as an IPv4 address, also in octal and hexadecimal.
_NUMERIC_HOST = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?")

# Tags of ``Value.struct_value`` and ``Value.list_value``. Each level below the first has one of them on the wire.
_LEVEL_TAGS = (b"\x2a", b"\x32")
_LEVEL_BYTES = 2
"""Minimum size of a level."""
_NUMBER_BYTES = 9


_RESERVED_LAST_SEGMENTS: Final = frozenset({"health", "heartbeat", "maintenance", "explain"})
"""Routes below a service: a proxy that decodes ``%2F`` must not turn the path of one service into that of another."""


class Identifier:
    """A kind of identifier: 1 to 128 letters, digits and certain other characters."""

    def __init__(self, noun: str, others: str, first: str = "") -> None:
        self._noun = noun
        start = f"a letter, digit or {first}" if first else "a letter or digit"
        self._rule = f"1 to 128 characters of A-Z a-z 0-9 {' '.join(others)}, starting with {start}"
        self.regex = re.compile(rf"[A-Za-z0-9{first}][A-Za-z0-9{others}]{{0,127}}")
        """Used with ``fullmatch`` only: ``$`` would accept a trailing line break."""

    def check(self, value: str, at: str, found: list[Violation]) -> None:
        """Check a required identifier."""
        if not self.regex.fullmatch(value):
            fault = f"{quoted(value)} is not a {self._noun}" if value else "is required"
            found.append(Violation(at, f"{fault}: {self._rule}"))


class ServiceName(Identifier):
    """The name of a service or group: an identifier that is also one segment of a URL, with ``%2F`` for a slash."""

    def check(self, value: str, at: str, found: list[Violation]) -> None:
        """Check a required name."""
        if not self.regex.fullmatch(value):
            super().check(value, at, found)
            return
        if "/" not in value:
            return
        segments = value.split("/")
        if not {"", ".", ".."}.isdisjoint(segments):
            found.append(
                Violation(at, f"{quoted(value)} has an empty segment, or one that is . or .., between slashes")
            )
        elif segments[-1] in _RESERVED_LAST_SEGMENTS:
            reserved = ", ".join(sorted(_RESERVED_LAST_SEGMENTS))
            found.append(
                Violation(at, f"{quoted(value)} ends in a reserved segment; after a slash, use none of {reserved}")
            )


NAME: Final = ServiceName("name", "._/@-", first="@")
CAPABILITY_NAME: Final = Identifier("capability name", "._:/-")
LABEL_KEY: Final = Identifier("label key", "._/-")


def check_instance_id(value: str, at: str, found: list[Violation]) -> None:
    """Check an optional instance id."""
    if value and not _INSTANCE_ID.fullmatch(value):
        rule = "1 to 64 printable ASCII characters without spaces"
        found.append(Violation(at, f"{quoted(value)} is not an instance id: {rule}"))


def check_length(value: str, at: str, limit: int, found: list[Violation]) -> None:
    """Check that text has at most ``limit`` characters."""
    if len(value) > limit:
        found.append(Violation(at, f"has {len(value)} characters; at most {limit} are allowed"))


def check_printable(value: str, at: str, limit: int, found: list[Violation]) -> None:
    """Check that text has at most ``limit`` characters, all of them printable."""
    if len(value) > limit:
        check_length(value, at, limit, found)
    elif not value.isprintable():
        found.append(Violation(at, f"{quoted(value)} contains control or other unprintable characters; remove them"))


def check_count(count: int, at: str, limit: int, noun: str, found: list[Violation]) -> bool:
    """Check that there are at most ``limit`` items, and return whether there are; walk only such a list."""
    if count > limit:
        found.append(Violation(at, f"has {count} {noun}; at most {limit} are allowed"))
    return count <= limit


def parse_optional(parse: Callable[[str], T], text: str, at: str, found: list[Violation]) -> T | None:
    """Return the parsed text; ``None`` if it is empty or not valid. ``parse`` raises ``ValueError`` with the reason."""
    try:
        return parse(text) if text else None
    except ValueError as error:
        found.append(Violation(at, str(error)))
        return None


def check_header(name: str, value: str, at: str, limit: int, found: list[Violation]) -> None:
    """Check a header of a probe (RFC 9110, 5.5 and 5.6.2): the name is a token, the value has no control characters.

    Headers that frame the request or concern only the connection belong to the prober: with them, the receiver or a
    proxy could take a part of the request for another one (RFC 9112, 11.2). ``Host`` may name a virtual host.
    """
    lowered = name.lower()
    if not HEADER_NAME.fullmatch(name):
        found.append(Violation(at, f"{quoted(name)} is not an HTTP header name: letters, digits and !#$%&'*+-.^_`|~"))
    elif lowered in _FRAMING_HEADERS or lowered.startswith("proxy-"):
        found.append(Violation(at, f"{quoted(name)} frames the request or concerns its connection; remove it"))
    elif lowered == "host" and (fault := authority_fault(value, port_required=False)):
        found.append(Violation(at, fault))
    if _NOT_IN_HEADER_VALUE.search(value):
        found.append(Violation(at, "the value contains line breaks or other control characters; remove them"))
    check_length(value, at, limit, found)


def check_path(path: str, at: str, limit: int, found: list[Violation]) -> None:
    """Check the path of a probe: ``path-absolute`` of RFC 3986, 3.3, optionally with a query.

    With two slashes at its start, the path would refer to another host when it is joined to the endpoint.
    """
    check_length(path, at, limit, found)
    if not path.startswith("/") or path.startswith("//"):
        found.append(Violation(at, f"{quoted(path)} is not an absolute path; start it with one slash, as in /health"))
    stray = _NOT_IN_PATH.search(path)
    if stray:
        found.append(Violation(at, f"has {stray.group()!r} at position {stray.start()}; percent-encode or remove it"))


def check_timestamp(timestamp: Timestamp, at: str, found: list[Violation]) -> None:
    """Check that a timestamp is in the range of the well-known type."""
    if not _MIN_TIMESTAMP_SECONDS <= timestamp.seconds <= _MAX_TIMESTAMP_SECONDS or not 0 <= timestamp.nanos < _NANOS:
        found.append(
            Violation(
                at,
                f"{timestamp.seconds} s and {timestamp.nanos} ns are not a valid timestamp: "
                "years 1 to 9999, nanos 0 to 999999999",
            )
        )


def check_duration(
    duration: Duration,
    at: str,
    minimum: timedelta,
    maximum: timedelta | None,
    found: list[Violation],
    *,
    otherwise: str = "",
) -> None:
    """Check that a duration is valid and in an inclusive range; ``otherwise`` names other accepted values."""
    seconds, nanos = duration.seconds, duration.nanos
    if not _is_duration(seconds, nanos):
        found.append(
            Violation(
                at,
                f"{seconds} s and {nanos} ns are not a valid duration: at most 10,000 years, "
                "nanos below one second and of the same sign as seconds",
            )
        )
        return
    total = seconds * _NANOS + nanos
    if total < _nanos(minimum) or (maximum is not None and total > _nanos(maximum)):
        span = f"at least {_span(minimum)}" if maximum is None else f"from {_span(minimum)} to {_span(maximum)}"
        found.append(Violation(at, f"is {total / _NANOS:.10g} s; must be {span}{otherwise}"))


def _is_duration(seconds: int, nanos: int) -> bool:
    """Return whether ``google.protobuf.Duration`` allows these values."""
    return -MAX_DURATION_SECONDS <= seconds <= MAX_DURATION_SECONDS and (
        0 <= nanos < _NANOS if seconds > 0 else -_NANOS < nanos <= 0 if seconds < 0 else -_NANOS < nanos < _NANOS
    )


def _nanos(span: timedelta) -> int:
    return (span.days * 86_400 + span.seconds) * _NANOS + span.microseconds * 1_000


def _span(span: timedelta) -> str:
    seconds = span.total_seconds()
    for size, unit in ((3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1_000:g} ms" if seconds else "0 s"


def check_struct(struct: Struct, at: str, found: list[Violation]) -> None:
    """Check that all numbers of a struct are finite and that it is not nested too deeply.

    The wire bytes rule out both faults in most cases, at a tenth of the cost of a walk: the last byte of an infinity or
    a NaN is 0x7f or 0xff, and each level below the first has the tag of a struct or list. The struct is walked only if
    such bytes occur, because they may also have another meaning.
    """
    wire = struct.SerializeToString()
    if (
        b"\x7f" in wire
        or b"\xff" in wire
        or wire.count(_LEVEL_TAGS[0]) + wire.count(_LEVEL_TAGS[1]) >= MAX_STRUCT_DEPTH
    ):
        _walk(_members(struct), 1, [], at, found)


def _walk(
    values: Iterable[tuple[str | int, Value]], depth: int, trail: list[str | int], at: str, found: list[Violation]
) -> None:
    """Check the values of a struct or list at a depth; ``trail`` has the keys that lead to it."""
    # Smaller values are neither numbers nor too deep. Reading the size creates no objects.
    min_bytes = min(_NUMBER_BYTES, _LEVEL_BYTES * (MAX_STRUCT_DEPTH - depth))
    for key, value in values:
        if value.ByteSize() < min_bytes:
            continue
        kind = value.WhichOneof("kind")
        if kind == "number_value":
            if not math.isfinite(value.number_value) and len(found) <= MAX_VIOLATIONS:
                where = quoted("/".join(map(str, (*trail, key))))
                found.append(Violation(at, f"the number at {where} is {value.number_value}; numbers must be finite"))
        elif kind in {"struct_value", "list_value"}:
            if depth == MAX_STRUCT_DEPTH:
                too_deep = Violation(at, f"is nested more than {MAX_STRUCT_DEPTH} levels deep; reduce the nesting")
                if too_deep not in found:
                    found.append(too_deep)
                return
            trail.append(key)
            inner = _members(value.struct_value) if kind == "struct_value" else enumerate(value.list_value.values)
            _walk(inner, depth + 1, trail, at, found)
            trail.pop()


def _members(struct: Struct) -> Iterator[tuple[str, Value]]:
    fields = struct.fields
    return ((key, fields[key]) for key in sorted(fields))


def check_schema(schema: Struct, at: str, found: list[Violation]) -> None:
    """Check a JSON Schema: a struct that is not the empty ``Struct`` of another program, read as a plain object."""
    fields = schema.fields
    if len(fields) == 1 and "fields" in fields and not _has_content(fields["fields"]):
        found.append(
            Violation(
                at,
                'has only the key "fields", without content: a plain object was given where the library expects a '
                'google.protobuf.Struct, such as {"fields":{"type":{"stringValue":"object"}}}; see docs/stubs.md',
            )
        )
    else:
        check_struct(schema, at, found)


def _has_content(value: Value) -> bool:
    match value.WhichOneof("kind"):
        case "struct_value":
            return bool(value.struct_value.fields)
        case "list_value":
            return bool(value.list_value.values)
        case kind:
            return kind not in {None, "null_value"}


def check_details(details: Struct, at: str, found: list[Violation]) -> None:
    """Check the details of a health status: a struct of limited size."""
    size = details.ByteSize()
    if size > MAX_DETAILS_BYTES:
        found.append(Violation(at, f"takes {size} bytes on the wire; at most {MAX_DETAILS_BYTES} are allowed"))
    else:
        check_struct(details, at, found)


def authority_fault(authority: str, *, port_required: bool) -> str | None:
    """Return what is wrong with ``host`` or ``host:port``; ``None`` if it is valid."""
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or not _is_ip(ipaddress.IPv6Address, host):
            return f"{quoted(authority)} does not hold an IPv6 address in brackets"
        if rest and not rest.startswith(":"):
            return f"{quoted(rest)} after the brackets is not a port"
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = authority.partition(":")
        if not _is_host(host):
            return f"{quoted(host)} is not a host: a DNS name, an IPv4 address or an IPv6 address in brackets"
    if not colon:
        return "has no port; tcp has no default, write tcp://host:port" if port_required else None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:  # noqa: PLR2004 - the range of 16 bits
        return f"{quoted(port)} is not a port: 1 to 65535"
    return None


def _is_host(host: str) -> bool:
    if len(host) - host.endswith(".") > _MAX_HOST_LENGTH or not _HOST.fullmatch(host):
        return False
    return not _NUMERIC_HOST.fullmatch(host) or _is_ip(ipaddress.IPv4Address, host)


@lru_cache(_MAX_CACHED_HOSTS)
def _is_ip(family: type[ipaddress.IPv4Address | ipaddress.IPv6Address], host: str) -> bool:
    try:
        family(host)
    except ValueError:
        return False
    return "%" not in host  # a zone (``fe80::1%eth0``) is meaningful on one host only

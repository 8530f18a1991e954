"""The JSON shape of services: derived from the message descriptors, with tables for the exceptions.

Keys are in camelCase, enum values in lower case, times in ISO 8601. Durations are numbers in the unit that the key
names. The type of a probe is the member ``type`` of a health check, next to the fields of the probe.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from ossa.registry.v1.service_pb2 import HealthCheck, HealthStatus, ServiceFilter

# Each has two classes, one for each implementation of protobuf, and the type stubs declare only one of them.
AnyDescriptor: TypeAlias = Any
AnyEnumDescriptor: TypeAlias = Any
AnyFieldDescriptor: TypeAlias = Any

NANOS_PER_SECOND: Final = 1_000_000_000
NANOS_PER_MS: Final = 1_000_000

# The top struct is the first level. The limit cannot be raised: protobuf parsers reject more than 100 nested messages,
# each struct level takes three, and a struct in a watch response is four messages deep.
MAX_STRUCT_DEPTH: Final = 32
# Range of the well-known type: https://protobuf.dev/reference/protobuf/google.protobuf
MAX_DURATION_SECONDS: Final = 315_576_000_000

DURATIONS: Final[Mapping[str, tuple[str, int]]] = {
    "ttl": ("ttlSeconds", NANOS_PER_SECOND),
    "response_time": ("responseTime", NANOS_PER_MS),
    "interval": ("intervalMs", NANOS_PER_MS),
    "timeout": ("timeoutMs", NANOS_PER_MS),
    "degraded_after": ("degradedAfterMs", NANOS_PER_MS),
    "replication_lag": ("replicationLagMs", NANOS_PER_MS),
}
"""JSON key and nanoseconds per unit of each duration field."""
OUTPUT_ONLY: Final = frozenset({"registered_at", "updated_at", "revision", "status_changed_at", "maintenance"})
"""Fields that are ignored in input, so that a service can be registered as it was returned."""
PROBE_TYPE_KEY: Final = "type"
PROBE_TYPES: Final = tuple(field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields)

_FILTER_NAMES: Final[Mapping[str, str]] = {"name_pattern": "name"}
_UNDERSCORE = re.compile(r"_([a-z])")


def enum_word(kind: AnyEnumDescriptor, value: int) -> str:
    """Return an enum value in JSON: ``healthy`` for HEALTH_STATUS_HEALTHY; unset and undefined ones are ``unknown``."""
    known = kind.values_by_number.get(value) if value else None
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(known.name.removeprefix(prefix).lower()) if known else "unknown"


STATUS_WORDS: Final[dict[HealthStatus.ValueType, str]] = {
    number: enum_word(HealthStatus.DESCRIPTOR, number) for number in HealthStatus.values() if number
}
"""The JSON word of each status; every other status is written as ``unknown``."""

STATUS_BY_WORD: Final[dict[str, HealthStatus.ValueType]] = {word: status for status, word in STATUS_WORDS.items()}

TEXT_FILTERS: Final[Mapping[str, str]] = {
    field.name: _FILTER_NAMES.get(field.name, field.name)
    for field in ServiceFilter.DESCRIPTOR.fields
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
}
"""The fields of ``ServiceFilter`` that are plain text, with the names of their query parameters and flags."""


def camel_case(name: str) -> str:
    """Return a name or path in camelCase: ``tagMatch`` for ``tag_match``."""
    return _UNDERSCORE.sub(lambda match: match[1].upper(), name)


def json_key(field: AnyFieldDescriptor) -> str:
    """Return the JSON key of a field."""
    return DURATIONS[field.name][0] if field.name in DURATIONS else str(field.json_name)


@cache
def json_keys(kind: AnyDescriptor) -> tuple[str, ...]:
    """Return the JSON keys of a message; those of a health check include the fields of all probe types."""
    keys: dict[str, None] = {}
    for field in kind.fields:
        if field.containing_oneof is None:
            keys[json_key(field)] = None
        else:
            keys |= dict.fromkeys((PROBE_TYPE_KEY, *json_keys(field.message_type)))
    return tuple(keys)


def json_path(path: str) -> str:
    """Return the path in JSON of a field path within a service: ``healthCheck.path`` for ``health_check.http.path``."""
    # A quoted map key is always last in a path, and is kept as the client wrote it.
    head, bracket, key = path.partition('["')
    *outer, last = head.split(".")
    names = [*(name for name in outer if name not in PROBE_TYPES), last]
    return ".".join(DURATIONS[name][0] if name in DURATIONS else camel_case(name) for name in names) + bracket + key

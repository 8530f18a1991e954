"""The JSON shape of a service: camelCase keys, status in lower case, times in ISO 8601, durations as numbers.

REST answers it, Server-Sent Events carry it, and Redis holds it for other programs to read. It is written out by hand:
``json_format`` takes 360 µs for what takes 40 µs here, and its shape of times and durations is another.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from math import copysign
from typing import Any, Final

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import Capability, Health, HealthCheck, HealthStatus, Metadata, Service
from registry_server.errors import InvalidRequest, Violation
from registry_server.model.json_reader import EPOCH, NANOS_PER_SECOND, JsonReader, member
from registry_server.model.rules import quoted

STATUS_WORDS: Final[dict[HealthStatus.ValueType, str]] = {
    HealthStatus.HEALTH_STATUS_HEALTHY: "healthy",
    HealthStatus.HEALTH_STATUS_UNHEALTHY: "unhealthy",
    HealthStatus.HEALTH_STATUS_DEGRADED: "degraded",
    HealthStatus.HEALTH_STATUS_UNKNOWN: "unknown",
    HealthStatus.HEALTH_STATUS_MAINTENANCE: "maintenance",
}
"""A status as JSON spells it. What is not here is spelt ``unknown``."""

STATUS_BY_WORD: Final[dict[str, HealthStatus.ValueType]] = {word: status for status, word in STATUS_WORDS.items()}

_NANOS_PER_MS = 1_000_000
# Up to here a double holds every whole number, and so does JavaScript.
_MAX_SAFE_INTEGER = 2**53

_SERVICE_KEYS = (
    "name", "endpoint", "capabilities", "version", "health", "metadata", "registeredAt", "updatedAt", "group",
    "healthCheck", "ttlSeconds", "revision",
)  # fmt: skip
_CAPABILITY_KEYS = ("name", "version", "inputs", "outputs", "description")
_HEALTH_KEYS = ("status", "lastCheck", "responseTime", "details", "error", "statusChangedAt")
_METADATA_KEYS = ("description", "tags", "author", "documentation", "environment", "labels")
_HTTP_KEYS = ("path", "method", "headers", "expectedStatuses")
_CHECK_KEYS = (
    "type", *_HTTP_KEYS, "service", "intervalMs", "timeoutMs", "failureThreshold", "successThreshold",
    "degradedAfterMs",
)  # fmt: skip
_KIND_OF_KEY = {**dict.fromkeys(_HTTP_KEYS, "http"), "service": "grpc"}
_PROBE_TYPES = ("http", "grpc", "tcp", "heartbeat", "none")

# At most about 8 MiB, whatever is registered.
_REMEMBERED_SCHEMAS = 1_024
_REMEMBERED_TIMES = 256  # a change has the same time up to three times
_MAX_REMEMBERED_BYTES = 4_096

_Schema = Callable[[Struct], Any]
"""Makes of a schema what stands for it in a document."""


def service_document(service: Service) -> dict[str, Any]:
    """The JSON shape of a valid service.

    Args:
        service: As the registry holds it.

    Returns:
        Plain values, ready for ``json.dumps``; optional fields that are unset are left out.
    """
    document = _document(service, _plain_schema)
    document["revision"] = service.revision
    return document


def encode_document_open(service: Service) -> bytes:
    """UTF-8 JSON of a service up to its revision, which only the commit knows: ``{...,"revision":``.

    The commit script appends the number and the closing brace.

    Args:
        service: What is to be stored; its own ``revision`` is not used.

    Returns:
        The document without its end.
    """
    return orjson.dumps(_document(service, _schema_fragment))[:-1] + b',"revision":'


def health_document(health: Health) -> dict[str, Any]:
    """The JSON shape of a valid health.

    Args:
        health: As the registry holds it.

    Returns:
        Plain values, ready for ``json.dumps``; optional fields that are unset are left out.
    """
    document: dict[str, Any] = {"status": STATUS_WORDS.get(health.status, "unknown")}
    if health.HasField("last_check"):
        document["lastCheck"] = time_text(health.last_check)
    if health.HasField("response_time"):
        document["responseTime"] = _number_of(health.response_time, _NANOS_PER_MS)
    if health.HasField("details"):
        document["details"] = _plain_struct(health.details)
    if error := health.error:
        document["error"] = error
    if health.HasField("status_changed_at"):
        document["statusChangedAt"] = time_text(health.status_changed_at)
    return document


def service_from_document(document: object, at: str = "") -> Service:
    """Reads a service from parsed JSON. Maps the shape only; ``service_violations`` checks the rules.

    Args:
        document: What ``json.loads`` gave. Output-only fields in it are ignored, ``null`` is the same as absent.
        at: Path of the document in the request, where it is not the whole of it.

    Returns:
        The service.

    Raises:
        InvalidRequest: Fields that are unknown or of the wrong type, all of them, with their paths in camelCase.
    """
    violations: list[Violation] = []
    service = read_service(document, violations, at)
    if violations:
        raise InvalidRequest(violations)
    return service


def read_service(document: object, violations: list[Violation], at: str = "") -> Service:
    """Reads a service like ``service_from_document``, but goes on after what is wrong.

    Args:
        document: What ``json.loads`` gave.
        violations: What is wrong with it is added here.
        at: Path of the document in the request, where it is not the whole of it.

    Returns:
        What could be read of the service.
    """
    reader = JsonReader("service")
    service = Service()
    if document is None:
        reader.note(at, "is required: a JSON object")
    _read_service(reader, document, at, service)
    violations += reader.violations
    return service


def _document(service: Service, schema: _Schema) -> dict[str, Any]:
    name = service.name
    document: dict[str, Any] = {
        "name": name,
        "endpoint": service.endpoint,
        "capabilities": [_capability_document(capability, schema) for capability in service.capabilities],
        "version": service.version,
        "health": health_document(service.health),
    }
    if service.HasField("metadata"):
        document["metadata"] = _metadata_document(service.metadata)
    if service.HasField("registered_at"):
        document["registeredAt"] = time_text(service.registered_at)
    if service.HasField("updated_at"):
        document["updatedAt"] = time_text(service.updated_at)
    document["group"] = service.group or name
    if service.HasField("health_check"):
        document["healthCheck"] = _health_check_document(service.health_check)
    if service.HasField("ttl"):
        document["ttlSeconds"] = _number_of(service.ttl, NANOS_PER_SECOND)
    return document


def _capability_document(capability: Capability, schema: _Schema) -> dict[str, Any]:
    document: dict[str, Any] = {"name": capability.name, "version": capability.version}
    if capability.HasField("inputs"):
        document["inputs"] = schema(capability.inputs)
    if capability.HasField("outputs"):
        document["outputs"] = schema(capability.outputs)
    if description := capability.description:
        document["description"] = description
    return document


def _metadata_document(metadata: Metadata) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if description := metadata.description:
        document["description"] = description
    document["tags"] = list(metadata.tags)
    if author := metadata.author:
        document["author"] = author
    if documentation := metadata.documentation:
        document["documentation"] = documentation
    if environment := metadata.environment:
        document["environment"] = environment
    labels = metadata.labels
    document["labels"] = {key: labels[key] for key in sorted(labels)}
    return document


def _health_check_document(check: HealthCheck) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if kind := check.WhichOneof("probe"):
        document["type"] = kind
    if kind == "http":
        document.update(_http_probe_document(check.http))
    elif kind == "grpc" and check.grpc.service:
        document["service"] = check.grpc.service
    if check.HasField("interval"):
        document["intervalMs"] = _number_of(check.interval, _NANOS_PER_MS)
    if check.HasField("timeout"):
        document["timeoutMs"] = _number_of(check.timeout, _NANOS_PER_MS)
    if check.failure_threshold:
        document["failureThreshold"] = check.failure_threshold
    if check.success_threshold:
        document["successThreshold"] = check.success_threshold
    if check.HasField("degraded_after"):
        document["degradedAfterMs"] = _number_of(check.degraded_after, _NANOS_PER_MS)
    return document


def _http_probe_document(probe: HealthCheck.HttpProbe) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if probe.path:
        document["path"] = probe.path
    if probe.method:
        document["method"] = probe.method
    if probe.headers:
        document["headers"] = {name: probe.headers[name] for name in sorted(probe.headers)}
    if probe.expected_statuses:
        document["expectedStatuses"] = list(probe.expected_statuses)
    return document


def time_text(timestamp: Timestamp) -> str:
    """A time in ISO 8601 UTC with milliseconds and ``Z``."""
    return _time_text(timestamp.seconds, timestamp.nanos // _NANOS_PER_MS)


@lru_cache(maxsize=_REMEMBERED_TIMES)
def _time_text(seconds: int, milliseconds: int) -> str:
    moment = EPOCH + timedelta(seconds=seconds, milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def _number_of(duration: Duration, nanos_per_unit: int) -> int | float:
    nanos = duration.seconds * NANOS_PER_SECOND + duration.nanos
    return nanos / nanos_per_unit if nanos % nanos_per_unit else nanos // nanos_per_unit


def _plain_schema(struct: Struct) -> dict[str, Any]:
    """``_plain_struct`` with a memory: replicas share their schemas, and each change of health writes them again.

    A walk takes about 1.1 µs a value, the way by the wire bytes 2 µs for a schema of twelve values.
    """
    wire = struct.SerializeToString()
    if len(wire) > _MAX_REMEMBERED_BYTES:
        return _plain_struct(struct)
    # Decoded anew each time: what is handed out belongs to the caller.
    plain: dict[str, Any] = orjson.loads(_schema_text(wire))
    return plain


def _schema_fragment(struct: Struct) -> orjson.Fragment | dict[str, Any]:
    """The same, for where it is only to be written: not even decoded."""
    wire = struct.SerializeToString()
    return _plain_struct(struct) if len(wire) > _MAX_REMEMBERED_BYTES else orjson.Fragment(_schema_text(wire))


@lru_cache(maxsize=_REMEMBERED_SCHEMAS)
def _schema_text(wire: bytes) -> bytes:
    return orjson.dumps(_plain_struct(Struct.FromString(wire)))


def _plain_struct(struct: Struct) -> dict[str, Any]:
    # Sorted: a protobuf map has no order of its own, and the same service must give the same bytes.
    fields = struct.fields
    return {key: _plain(fields[key]) for key in sorted(fields)}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "struct_value":
        return _plain_struct(value.struct_value)
    if kind == "number_value":
        return _plain_number(value.number_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "bool_value":
        return value.bool_value
    return None


def _plain_number(number: float) -> int | float:
    whole = number.is_integer() and -_MAX_SAFE_INTEGER <= number <= _MAX_SAFE_INTEGER
    # Protobuf tells -0.0 from 0.0; an integer would not.
    return int(number) if whole and (number or copysign(1, number) > 0) else number


def _read_service(reader: JsonReader, document: object, at: str, service: Service) -> None:
    fields = reader.members(document, at, _SERVICE_KEYS)
    service.name = reader.text(fields.get("name"), member(at, "name"))
    service.endpoint = reader.text(fields.get("endpoint"), member(at, "endpoint"))
    service.version = reader.text(fields.get("version"), member(at, "version"))
    service.group = reader.text(fields.get("group"), member(at, "group"))
    for here, item in reader.items(fields.get("capabilities"), member(at, "capabilities")):
        _read_capability(reader, item, here, service.capabilities.add())
    if "health" in fields:
        service.health.SetInParent()
        _read_health(reader, fields["health"], member(at, "health"), service.health)
    if "metadata" in fields:
        service.metadata.SetInParent()
        _read_metadata(reader, fields["metadata"], member(at, "metadata"), service.metadata)
    if "healthCheck" in fields:
        service.health_check.SetInParent()
        _read_health_check(reader, fields["healthCheck"], member(at, "healthCheck"), service.health_check)
    _read_duration(reader, fields, "ttlSeconds", at, service.ttl, NANOS_PER_SECOND)


def _read_capability(reader: JsonReader, document: object, at: str, capability: Capability) -> None:
    fields = reader.members(document, at, _CAPABILITY_KEYS)
    capability.name = reader.text(fields.get("name"), member(at, "name"))
    capability.version = reader.text(fields.get("version"), member(at, "version"))
    capability.description = reader.text(fields.get("description"), member(at, "description"))
    reader.struct(fields.get("inputs"), member(at, "inputs"), capability.inputs)
    reader.struct(fields.get("outputs"), member(at, "outputs"), capability.outputs)


def _read_health(reader: JsonReader, document: object, at: str, health: Health) -> None:
    fields = reader.members(document, at, _HEALTH_KEYS)
    here = member(at, "status")
    word = reader.text(fields.get("status"), here)
    if word in STATUS_BY_WORD:
        health.status = STATUS_BY_WORD[word]
    elif word or fields.get("status") == "":
        reader.note(here, f"{quoted(word)} is not a status; use one of {', '.join(STATUS_BY_WORD)}")
    last_check = reader.timestamp(fields.get("lastCheck"), member(at, "lastCheck"))
    if last_check is not None:
        health.last_check.CopyFrom(last_check)
    _read_duration(reader, fields, "responseTime", at, health.response_time, _NANOS_PER_MS)
    reader.struct(fields.get("details"), member(at, "details"), health.details)
    health.error = reader.text(fields.get("error"), member(at, "error"))


def _read_metadata(reader: JsonReader, document: object, at: str, metadata: Metadata) -> None:
    fields = reader.members(document, at, _METADATA_KEYS)
    metadata.description = reader.text(fields.get("description"), member(at, "description"))
    metadata.author = reader.text(fields.get("author"), member(at, "author"))
    metadata.documentation = reader.text(fields.get("documentation"), member(at, "documentation"))
    metadata.environment = reader.text(fields.get("environment"), member(at, "environment"))
    metadata.tags.extend(reader.text(tag, here) for here, tag in reader.items(fields.get("tags"), member(at, "tags")))
    metadata.labels.update(reader.texts(fields.get("labels"), member(at, "labels")))


def _read_health_check(reader: JsonReader, document: object, at: str, check: HealthCheck) -> None:
    fields = reader.members(document, at, _CHECK_KEYS)
    _read_probe(reader, fields, at, check)
    _read_duration(reader, fields, "intervalMs", at, check.interval, _NANOS_PER_MS)
    _read_duration(reader, fields, "timeoutMs", at, check.timeout, _NANOS_PER_MS)
    _read_duration(reader, fields, "degradedAfterMs", at, check.degraded_after, _NANOS_PER_MS)
    check.failure_threshold = reader.int32(fields.get("failureThreshold"), member(at, "failureThreshold"))
    check.success_threshold = reader.int32(fields.get("successThreshold"), member(at, "successThreshold"))


def _read_probe(reader: JsonReader, fields: dict[str, object], at: str, check: HealthCheck) -> None:
    kind = reader.text(fields.get("type"), member(at, "type"))
    match kind:
        case "http":
            check.http.SetInParent()
            check.http.path = reader.text(fields.get("path"), member(at, "path"))
            check.http.method = reader.text(fields.get("method"), member(at, "method"))
            check.http.headers.update(reader.texts(fields.get("headers"), member(at, "headers")))
            statuses = reader.items(fields.get("expectedStatuses"), member(at, "expectedStatuses"))
            check.http.expected_statuses.extend(reader.int32(status, here) for here, status in statuses)
        case "grpc":
            check.grpc.SetInParent()
            check.grpc.service = reader.text(fields.get("service"), member(at, "service"))
        case "tcp":
            check.tcp.SetInParent()
        case "heartbeat":
            check.heartbeat.SetInParent()
        case "none":
            check.none.SetInParent()
        case _ if kind or fields.get("type") == "":
            reader.note(
                member(at, "type"), f"{quoted(kind)} is not a kind of probe; use one of {', '.join(_PROBE_TYPES)}"
            )
            return
        case _:
            pass
    # What belongs to another kind would be lost without a word.
    for key, needed in _KIND_OF_KEY.items():
        if key in fields and kind != needed:
            reader.note(member(at, key), f'goes with "type":"{needed}" only')


def _read_duration(
    reader: JsonReader, fields: dict[str, object], key: str, at: str, duration: Duration, nanos_per_unit: int
) -> None:
    value = reader.duration(fields.get(key), member(at, key), nanos_per_unit=nanos_per_unit)
    if value is not None:
        duration.CopyFrom(value)

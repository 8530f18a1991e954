"""Reads the JSON form of a service; ``document`` writes it."""

from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.service_pb2 import Capability, Health, HealthCheck, Metadata, Service
from registry_server.errors import InvalidRequest, Violation
from registry_server.model.document import STATUS_BY_WORD
from registry_server.model.json_reader import NANOS_PER_MS, NANOS_PER_SECOND, JsonReader, member
from registry_server.model.rules import quoted

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


def service_from_document(document: object, at: str = "") -> Service:
    """Convert parsed JSON to a service. Checks only the shape; ``service_violations`` checks the values.

    Args:
        document: Parsed JSON. Output-only fields are ignored; ``null`` means absent.
        at: Path of the document in the request; empty if it is the whole request.

    Raises:
        InvalidRequest: Fields are unknown or have the wrong type. Contains all of them, with paths in camelCase.
    """
    violations: list[Violation] = []
    service = read_service(document, violations, at)
    if violations:
        raise InvalidRequest(violations)
    return service


def read_service(document: object, violations: list[Violation], at: str = "") -> Service:
    """Convert parsed JSON to a service as ``service_from_document`` does, but collect the violations.

    Args:
        document: Parsed JSON.
        violations: List to which the violations are added.
        at: Path of the document in the request; empty if it is the whole request.

    Returns:
        The service with all fields that could be read.
    """
    reader = JsonReader("service")
    service = Service()
    if document is None:
        reader.add_violation(at, "is required: a JSON object")
    _read_service(reader, document, at, service)
    violations += reader.violations
    return service


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
        reader.add_violation(here, f"{quoted(word)} is not a status; use one of {', '.join(STATUS_BY_WORD)}")
    last_check = reader.timestamp(fields.get("lastCheck"), member(at, "lastCheck"))
    if last_check is not None:
        health.last_check.CopyFrom(last_check)
    _read_duration(reader, fields, "responseTime", at, health.response_time, NANOS_PER_MS)
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
    _read_duration(reader, fields, "intervalMs", at, check.interval, NANOS_PER_MS)
    _read_duration(reader, fields, "timeoutMs", at, check.timeout, NANOS_PER_MS)
    _read_duration(reader, fields, "degradedAfterMs", at, check.degraded_after, NANOS_PER_MS)
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
            reader.add_violation(
                member(at, "type"), f"{quoted(kind)} is not a kind of probe; use one of {', '.join(_PROBE_TYPES)}"
            )
            return
        case _:
            pass
    # A field of another kind would otherwise be dropped silently.
    for key, needed in _KIND_OF_KEY.items():
        if key in fields and kind != needed:
            reader.add_violation(member(at, key), f'is only allowed with "type":"{needed}"')


def _read_duration(
    reader: JsonReader, fields: dict[str, object], key: str, at: str, duration: Duration, nanos_per_unit: int
) -> None:
    value = reader.duration(fields.get(key), member(at, key), nanos_per_unit=nanos_per_unit)
    if value is not None:
        duration.CopyFrom(value)

"""Validation of messages by the rules that the comments in ``protos/`` document.

Every function returns all violations; an empty list means that the message is valid.
Output-only fields are not checked, so that clients may send back a service that they read.
"""

from collections.abc import Mapping, MutableSequence
from datetime import timedelta
from itertools import islice
from typing import Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from ossa.registry.v1.service_pb2 import Capability, Health, HealthCheck, HealthStatus, Metadata, Service
from ossa_common.json_shape import OUTPUT_ONLY
from ossa_common.violations import Violation, keyed, quoted
from registry_server.model import endpoints, normal, rules
from registry_server.model.rules import MAX_ERROR_LENGTH

MAX_SERVICE_BYTES: Final = 131_072
MAX_CAPABILITIES: Final = 256
MAX_TAGS: Final = 64
MAX_LABELS: Final = 64
MAX_VERSION_LENGTH: Final = 128
MAX_DESCRIPTION_LENGTH: Final = 4_096
MAX_TAG_LENGTH: Final = 128
MAX_AUTHOR_LENGTH: Final = 256
MAX_DOCUMENTATION_LENGTH: Final = 2_048
MAX_ENVIRONMENT_LENGTH: Final = 128
MAX_LABEL_VALUE_LENGTH: Final = 256
MAX_MASK_PATHS: Final = 128
"""More than there are fields, because repetitions are valid."""
MIN_TTL: Final = timedelta(seconds=5)
MAX_TTL: Final = timedelta(hours=24)

_MAX_PATH_LENGTH = 1_024
_MAX_HEADERS = 16
_MAX_HEADER_VALUE_LENGTH = 1_024
_MAX_EXPECTED_STATUSES = 32
_MAX_GRPC_SERVICE_LENGTH = 256
_MAX_THRESHOLD = 100
_METHODS = ("GET", "HEAD", "POST")
_LOWEST_STATUS, _HIGHEST_STATUS = 100, 599
_INTERVAL_RANGE = (timedelta(seconds=1), timedelta(hours=24))
_TIMEOUT_RANGE = (timedelta(milliseconds=10), timedelta(minutes=5))
_DEGRADED_AFTER_RANGE = (timedelta(milliseconds=1), timedelta(minutes=5))
_ZERO = timedelta()

_OF_INSTANCE = "cannot be updated; the instance sets it, in registrations, heartbeats or reports"

_STATUSES: Final[Mapping[int, str]] = {
    number: name.removeprefix("HEALTH_STATUS_") for name, number in HealthStatus.items()
}


def service_violations(service: Service, at: str = "service") -> list[Violation]:
    """Check all fields of a service that a client may set.

    Args:
        service: The service to register, or the result of an update.
        at: Path of the service in the request.
    """
    found = size_violations(service, at)
    check_structs = not found  # a request may be far larger than a service
    rules.NAME.check(service.name, f"{at}.name", found)
    endpoints.check_endpoint(service.endpoint, f"{at}.endpoint", found)
    if not service.version:
        found.append(Violation(f"{at}.version", "is required: SemVer such as 1.4.2 is recommended"))
    rules.check_printable(service.version, f"{at}.version", MAX_VERSION_LENGTH, found)
    if service.group:
        rules.NAME.check(service.group, f"{at}.group", found)
    if service.capabilities:
        _check_capabilities(service.capabilities, f"{at}.capabilities", found, check_structs=check_structs)
    if service.HasField("metadata"):
        _check_metadata(service.metadata, f"{at}.metadata", found)
    if service.HasField("health"):
        _check_health(service.health, f"{at}.health", found)
    if service.HasField("health_check"):
        _check_health_check(service.health_check, f"{at}.health_check", found)
    if service.HasField("ttl") and (service.ttl.seconds or service.ttl.nanos):
        rules.check_duration(service.ttl, f"{at}.ttl", MIN_TTL, MAX_TTL, found, otherwise=", or 0 s = permanent")
    rules.check_instance_id(service.instance_id, f"{at}.instance_id", found)
    return found


def size_violations(service: Service, at: str = "service") -> list[Violation]:
    """Check the size of a service without its output-only fields."""
    size = service.ByteSize()
    if size > MAX_SERVICE_BYTES:
        content = Service()
        content.CopyFrom(service)
        normal.clear_output_only(content)
        size = content.ByteSize()
    if size <= MAX_SERVICE_BYTES:
        return []
    return [Violation(at, f"takes {size} bytes on the wire; at most {MAX_SERVICE_BYTES} are allowed")]


def name_violations(name: str, at: str) -> list[Violation]:
    """Check the name of a service or group; an empty name is a violation."""
    found: list[Violation] = []
    rules.NAME.check(name, at, found)
    return found


def maintenance_violations(name: str, reason: str, *, enabled: bool) -> list[Violation]:
    """Check the fields of a ``SetMaintenanceRequest``."""
    found = name_violations(name, "name")
    rules.check_length(reason, "reason", MAX_ERROR_LENGTH, found)
    if reason and not enabled:
        found.append(Violation("reason", "must be empty if the maintenance ends"))
    return found


def status_violations(status: int, at: str) -> list[Violation]:
    """Check a status that must be set and known."""
    found: list[Violation] = []
    if status == HealthStatus.HEALTH_STATUS_UNSPECIFIED:
        found.append(Violation(at, f"is required: one of {_known_statuses()}"))
    _check_status(status, at, found)
    return found


def update_mask_violations(mask: FieldMask, at: str = "update_mask") -> list[Violation]:
    """Check that every path of a mask is a field of ``Service`` that a client may set.

    Args:
        mask: Paths such as ``metadata.tags``, or ``*`` alone. An empty mask is valid.
        at: Path of the mask in the request.

    Returns:
        One violation for each invalid path.
    """
    found: list[Violation] = []
    if not rules.check_count(len(mask.paths), f"{at}.paths", MAX_MASK_PATHS, "paths", found):
        return found
    for index, path in enumerate(mask.paths):
        fault = _path_fault(path, alone=len(mask.paths) == 1)
        if fault:
            found.append(Violation(f"{at}.paths[{index}]", fault))
    return found


def _check_capabilities(
    capabilities: MutableSequence[Capability], at: str, found: list[Violation], *, check_structs: bool
) -> None:
    rules.check_count(len(capabilities), at, MAX_CAPABILITIES, "capabilities", found)
    seen: dict[tuple[str, str], int] = {}
    # Items above the limit are not checked, so that the work is bounded.
    for index, capability in enumerate(islice(capabilities, MAX_CAPABILITIES)):
        here = f"{at}[{index}]"
        name, version = capability.name, capability.version
        rules.CAPABILITY_NAME.check(name, f"{here}.name", found)
        if version:
            rules.check_printable(version, f"{here}.version", MAX_VERSION_LENGTH, found)
        rules.check_length(capability.description, f"{here}.description", MAX_DESCRIPTION_LENGTH, found)
        if check_structs and capability.HasField("inputs"):
            rules.check_schema(capability.inputs, f"{here}.inputs", found)
        if check_structs and capability.HasField("outputs"):
            rules.check_schema(capability.outputs, f"{here}.outputs", found)
        first = seen.setdefault((name, version), index)
        if first != index:
            found.append(
                Violation(
                    here, f"has the name and version of capabilities[{first}]; list each version of a capability once"
                )
            )


def _check_metadata(metadata: Metadata, at: str, found: list[Violation]) -> None:
    rules.check_length(metadata.description, f"{at}.description", MAX_DESCRIPTION_LENGTH, found)
    rules.check_length(metadata.author, f"{at}.author", MAX_AUTHOR_LENGTH, found)
    rules.check_length(metadata.documentation, f"{at}.documentation", MAX_DOCUMENTATION_LENGTH, found)
    rules.check_printable(metadata.environment, f"{at}.environment", MAX_ENVIRONMENT_LENGTH, found)
    if metadata.tags:
        _check_tags(metadata.tags, f"{at}.tags", found)
    if metadata.labels:
        _check_labels(metadata.labels, f"{at}.labels", found)


def _check_tags(tags: MutableSequence[str], at: str, found: list[Violation]) -> None:
    rules.check_count(len(tags), at, MAX_TAGS, "tags", found)
    seen: dict[str, int] = {}
    for index, tag in enumerate(islice(tags, MAX_TAGS)):
        here = f"{at}[{index}]"
        if not tag:
            found.append(Violation(here, "is empty; a tag must have 1 to 128 characters"))
        elif "," in tag:
            found.append(Violation(here, f"{quoted(tag)} contains a comma; use two tags"))
        rules.check_printable(tag, here, MAX_TAG_LENGTH, found)
        first = seen.setdefault(tag, index)
        if first != index:
            found.append(Violation(here, f"{quoted(tag)} is a duplicate of tags[{first}]; list each tag once"))


def _check_labels(labels: Mapping[str, str], at: str, found: list[Violation]) -> None:
    rules.check_count(len(labels), at, MAX_LABELS, "labels", found)
    # Sorted, because a protobuf map is unordered and responses should be deterministic.
    for key in sorted(islice(labels, MAX_LABELS)):
        here = keyed(at, key)
        rules.LABEL_KEY.check(key, here, found)
        rules.check_length(labels[key], here, MAX_LABEL_VALUE_LENGTH, found)


def _check_health(health: Health, at: str, found: list[Violation]) -> None:
    _check_status(health.status, f"{at}.status", found)
    if health.HasField("last_check"):
        rules.check_timestamp(health.last_check, f"{at}.last_check", found)
    if health.HasField("response_time"):
        rules.check_duration(health.response_time, f"{at}.response_time", _ZERO, None, found)
    if health.HasField("details"):
        rules.check_details(health.details, f"{at}.details", found)
    rules.check_length(health.error, f"{at}.error", MAX_ERROR_LENGTH, found)


def _check_status(status: int, at: str, found: list[Violation]) -> None:
    if status not in _STATUSES:
        found.append(Violation(at, f"{status} is not a known status; use one of {_known_statuses()}"))


def _known_statuses() -> str:
    return ", ".join(name for number, name in _STATUSES.items() if number)


def _check_health_check(check: HealthCheck, at: str, found: list[Violation]) -> None:
    if check.HasField("http"):
        _check_http_probe(check.http, f"{at}.http", found)
    elif check.HasField("grpc"):
        rules.check_length(check.grpc.service, f"{at}.grpc.service", _MAX_GRPC_SERVICE_LENGTH, found)
    before = len(found)
    if check.HasField("interval"):
        rules.check_duration(check.interval, f"{at}.interval", *_INTERVAL_RANGE, found)
    if check.HasField("timeout"):
        rules.check_duration(check.timeout, f"{at}.timeout", *_TIMEOUT_RANGE, found)
    if (
        check.HasField("interval")
        and check.HasField("timeout")
        and len(found) == before
        and check.timeout.ToNanoseconds() > check.interval.ToNanoseconds()
    ):
        found.append(
            Violation(f"{at}.timeout", "is longer than `interval`; a probe must end before the next one starts")
        )
    if check.HasField("degraded_after"):
        rules.check_duration(check.degraded_after, f"{at}.degraded_after", *_DEGRADED_AFTER_RANGE, found)
    for field, threshold in (
        ("failure_threshold", check.failure_threshold),
        ("success_threshold", check.success_threshold),
    ):
        if not 0 <= threshold <= _MAX_THRESHOLD:
            found.append(Violation(f"{at}.{field}", f"is {threshold}; must be 1 to {_MAX_THRESHOLD}, 0 = the default"))


def _check_http_probe(probe: HealthCheck.HttpProbe, at: str, found: list[Violation]) -> None:
    if probe.path:
        rules.check_path(probe.path, f"{at}.path", _MAX_PATH_LENGTH, found)
    if probe.method and probe.method not in _METHODS:
        found.append(Violation(f"{at}.method", f"{quoted(probe.method)} is not one of {', '.join(_METHODS)}"))
    rules.check_count(len(probe.headers), f"{at}.headers", _MAX_HEADERS, "headers", found)
    seen: dict[str, str] = {}
    for name in sorted(islice(probe.headers, _MAX_HEADERS)):
        here = keyed(f"{at}.headers", name)
        first = seen.setdefault(name.lower(), name)
        if first != name:
            found.append(Violation(here, f"{quoted(name)} and {quoted(first)} are the same header; send it once"))
        rules.check_header(name, probe.headers[name], here, _MAX_HEADER_VALUE_LENGTH, found)
    statuses = probe.expected_statuses
    rules.check_count(len(statuses), f"{at}.expected_statuses", _MAX_EXPECTED_STATUSES, "status codes", found)
    for index, status in enumerate(islice(statuses, _MAX_EXPECTED_STATUSES)):
        if not _LOWEST_STATUS <= status <= _HIGHEST_STATUS:
            found.append(
                Violation(
                    f"{at}.expected_statuses[{index}]",
                    f"{status} is not an HTTP status code: {_LOWEST_STATUS} to {_HIGHEST_STATUS}",
                )
            )


def _paths_below(message: Descriptor, prefix: str = "") -> Mapping[str, bool]:
    """Return every path of a message; the value is whether fields below the path may be named."""
    paths: dict[str, bool] = {}
    for field in message.fields:
        path = prefix + field.name
        inner: Descriptor | None = field.message_type
        # Lists, maps and well-known types can only be replaced as a whole.
        paths[path] = not field.is_repeated and inner is not None and inner.file.package != "google.protobuf"
        if inner is not None and paths[path]:
            paths.update(_paths_below(inner, f"{path}."))
    return paths


_PATHS: Final = _paths_below(Service.DESCRIPTOR)
_MAX_PATH_DEPTH: Final = max(path.count(".") for path in _PATHS) + 1


def _path_fault(path: str, *, alone: bool) -> str | None:
    if path == "*":
        return None if alone else "`*` means every field and must be the only path"
    if path in _PATHS and not _is_output_only(path):
        return f"{quoted(path)} {_OF_INSTANCE}" if path in normal.OF_INSTANCE else None
    # The longest valid prefix determines the error.
    parts = path.split(".", _MAX_PATH_DEPTH)[:_MAX_PATH_DEPTH]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    known = next((prefix for prefix in prefixes if prefix in _PATHS), "")
    if _is_output_only(known):
        return f"{quoted(path)} is output only; only the registry sets it"
    if known and not _PATHS[known]:
        return f"{quoted(path)} is inside {known!r}, which can only be replaced as a whole; use {known!r}"
    return f"{quoted(path)} is not a field of a service"


def _is_output_only(path: str) -> bool:
    return path.rpartition(".")[2] in OUTPUT_ONLY

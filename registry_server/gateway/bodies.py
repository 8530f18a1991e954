"""Request bodies: strict JSON parsing, and reading of registrations and updates."""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf.field_mask_pb2 import FieldMask

from ossa.registry.v1.registry_service_pb2 import Lease, SetMaintenanceRequest
from ossa.registry.v1.service_pb2 import Service
from ossa_common.json_reader import read_fields, read_service
from ossa_common.json_shape import OUTPUT_ONLY, json_key
from ossa_common.json_values import ValueReader
from ossa_common.violations import MAX_VIOLATIONS, Violation, quoted
from registry_server.errors import InvalidRequest
from registry_server.gateway.answers import JSON
from registry_server.gateway.compression import InvalidEncoding, inflater_of
from registry_server.gateway.middleware import HttpCall
from registry_server.gateway.names import renamed
from registry_server.model import rules
from registry_server.model.normal import OF_INSTANCE
from registry_server.model.requests import raise_if_invalid
from registry_server.model.validation import service_violations
from registry_server.security.limits import SMALL_REQUEST_BYTES

BODY_TIMEOUT_SECONDS: Final = 30.0
"""Default time limit for receiving a body."""

_SEPARATORS: Final = (b",", b"[", b"{")
# Also matches a string without an end: if a match could fail, the search would begin again at each quote in it.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MAX_SEPARATORS: Final = 70_000
"""Two for each value of the largest service, and some for members that are ``null``: more would take 0.1 s to parse."""
_LARGE_BYTES: Final = 32 << 10
MAX_CONTENT_TYPE_LENGTH: Final = 256
"""Maximum length of the header ``Content-Type``."""

_MASK_PATHS: Final[Mapping[str, str]] = {
    json_key(field): field.name
    for field in Service.DESCRIPTOR.fields
    if field.name not in OUTPUT_ONLY | OF_INSTANCE | {"name"}
}
"""JSON members that an update can change, with their paths in a field mask."""


_LEASE_MEMBERS: Final = ("instanceId", "load", "draining")


async def read_json(call: HttpCall, max_bytes: int, timeout_seconds: float = BODY_TIMEOUT_SECONDS) -> Any:
    """Return the parsed JSON body of a request.

    Args:
        call: The request, which was admitted.
        max_bytes: Maximum size of the body, after inflating it.
        timeout_seconds: Time limit for receiving it.

    Raises:
        web.HTTPException: The body is too large, not declared as JSON, or not received in time.
        InvalidRequest: The body is not JSON (RFC 8259) or repeats a key of an object.
        Overloaded: The requests in flight hold too many bytes.
    """
    request = call.request
    # Parsing long parameters takes quadratic time.
    declared = request.headers.get("Content-Type", "")
    if declared != JSON and (len(declared) > MAX_CONTENT_TYPE_LENGTH or not _is_json(request)):
        raise web.HTTPUnsupportedMediaType(text="the body must be JSON: Content-Type: application/json, in UTF-8")
    if (request.content_length or 0) > max_bytes:
        raise too_large(max_bytes)
    content = request.content
    try:
        if content.is_eof() and content.total_bytes <= min(SMALL_REQUEST_BYTES, max_bytes) and not _is_encoded(request):
            raw = content.read_nowait()  # as almost always, it arrived with the head
        else:
            async with asyncio.timeout(timeout_seconds):
                raw = await _read(call, max_bytes)
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body was not received within {timeout_seconds:g} s") from None
    except (web.RequestPayloadError, HttpProcessingError) as error:
        error.__traceback__ = None  # as in HttpCall._fail
        raise _not_json("does not match its headers: check Transfer-Encoding") from None
    return parse_json(raw)


def _is_json(request: web.BaseRequest) -> bool:
    return request.content_type == "application/json" and (request.charset or "utf-8").lower() in {"utf-8", "utf8"}


def _is_encoded(request: web.BaseRequest) -> bool:
    return "Content-Encoding" in request.headers


async def _read(call: HttpCall, max_bytes: int) -> bytes:
    """Return the inflated body. What has arrived counts towards the bytes of the call."""
    pieces: list[bytes] = []
    size = 0
    # The server of another program does both.
    inflater = inflater_of(call.request) if call.protocol else None
    if call.protocol and call.request.headers.get("Expect", "").lower() == "100-continue":
        await call.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def add(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes)
        if call.slot is not None and size > SMALL_REQUEST_BYTES:
            call.slot.hold_bytes(len(piece))
        pieces.append(piece)

    try:
        async for chunk in call.request.content.iter_any():
            if inflater is None:
                add(chunk)
                continue
            for piece in inflater.inflate(chunk):
                add(piece)
                await asyncio.sleep(0)
        if inflater is not None:
            add(inflater.finish())
        return b"".join(pieces)
    except InvalidEncoding as error:
        raise _not_json(str(error)) from None
    finally:
        pieces.clear()  # the traceback of an error refers to them


def too_large(max_bytes: int) -> web.HTTPRequestEntityTooLarge:
    """Return the error for a body of more than ``max_bytes`` bytes."""
    return web.HTTPRequestEntityTooLarge(max_bytes, text=f"the body is larger than {max_bytes} bytes")


def parse_json(raw: bytes) -> Any:
    """Parse a body.

    Raises:
        InvalidRequest: The body is not JSON (RFC 8259) or repeats a key of an object.
    """
    # Separators within strings cost nothing; to leave them out takes about 10 ms for a body of 1 MiB.
    if _count_separators(raw) > _MAX_SEPARATORS and _count_separators(_STRING.sub(b"", raw)) > _MAX_SEPARATORS:
        raise _not_json(f"has more than {_MAX_SEPARATORS} values and members; a service has at most 128 KiB")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_members, parse_constant=_reject_constant)
    except UnicodeDecodeError as error:
        raise _not_json(f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise _not_json(
            f"is not JSON: {error.msg} at {position}" if raw else "is empty; a JSON object is required"
        ) from None
    except RecursionError:
        raise _not_json("is nested too deeply") from None
    except ValueError as error:
        raise _not_json(f"is not JSON: {error}") from None


def _count_separators(raw: bytes) -> int:
    return sum(map(raw.count, _SEPARATORS))


def parse_registration(document: object) -> Service:
    """Return the service of a registration.

    Raises:
        InvalidRequest: The document is not a valid registration; the error contains all violations.
    """
    service, violations = read_service(document)
    if isinstance(document, dict) and document.get("capabilities") is None:
        violations.insert(0, Violation("capabilities", "is required: an array, which may be empty"))
    if violations and isinstance(document, dict):
        # Also report violations of the rules, so that the client sees all at once, but only one per field.
        reported = {field for field, _ in violations}
        found = service_violations(service)[: MAX_VIOLATIONS + 1]
        violations += [each for each in renamed(found) if not _is_within(each.field, reported)]
    raise_if_invalid(violations)
    return service


async def end_turn_if_large(service: Service) -> None:
    """Let other tasks run before a large service is registered: reading it has taken up to 50 ms, and that does too."""
    if service.ByteSize() > _LARGE_BYTES:
        await asyncio.sleep(0)


def parse_update(document: object, name: str) -> tuple[Service, FieldMask]:
    """Return the service and field mask of an update: each member in the body is replaced, ``null`` clears it.

    Args:
        document: The parsed body.
        name: Name of the service in the request's path.

    Raises:
        InvalidRequest: A member is unknown or of the wrong type, or the name differs from the path.
    """
    if not isinstance(document, dict):
        raise InvalidRequest(read_service(document)[1])
    violations = _name_violations(document, name)
    if "capabilities" in document and document["capabilities"] is None:
        violations.append(Violation("capabilities", "must be an array, not null"))
    service, misshapen = read_service({**document, "name": name})
    raise_if_invalid(violations + misshapen)
    # An empty mask would update every field that is set. The name is always set and never changes.
    paths = [path for key, path in _MASK_PATHS.items() if key in document] or ["name"]
    return service, FieldMask(paths=paths)


def parse_heartbeat(document: object, lease: Lease) -> None:
    """Set the fields of a lease from the body of a heartbeat.

    Raises:
        InvalidRequest: A member is unknown or not valid.
    """
    reader = ValueReader("body")
    for key, value in reader.members(document, "").items():
        if value is None and key in _LEASE_MEMBERS:
            continue
        if key == "instanceId":
            lease.instance_id = reader.text(value, key)
        elif key == "load":
            _read_load(reader, value, lease)
        elif key == "draining":
            lease.draining = reader.boolean(value, key)
        else:
            reader.add_violation(key, f"is not a field; the fields are {', '.join(_LEASE_MEMBERS)}")
    rules.check_instance_id(lease.instance_id, "instanceId", reader.violations)
    raise_if_invalid(reader.violations)


def _read_load(reader: ValueReader, value: object, lease: Lease) -> None:
    lease.load.SetInParent()
    for key, number in reader.members(value, "load").items():
        at = f"load.{key}"
        if key not in ("inFlight", "capacity"):
            reader.add_violation(at, "is not a field; the fields are inFlight, capacity")
        elif (count := reader.int32(number, at)) < 0:
            reader.add_violation(at, f"is {count}; must not be negative")
        else:
            setattr(lease.load, "in_flight" if key == "inFlight" else key, count)


def parse_maintenance(document: object, name: str) -> SetMaintenanceRequest:
    """Return the request of a body such as ``{"enabled": true, "reason": "disk replacement"}``.

    Raises:
        InvalidRequest: A member is missing, unknown or of the wrong type.
    """
    request = SetMaintenanceRequest()
    violations = read_fields(document, request)
    if isinstance(document, dict):
        if document.get("enabled") is None:
            violations.append(Violation("enabled", "is required: true starts the maintenance, false ends it"))
        violations += _name_violations(document, name)
    raise_if_invalid(violations)
    request.name = name
    return request


def _name_violations(document: Mapping[str, Any], name: str) -> list[Violation]:
    """Check that the name in a body, if there is one, is the one in the path."""
    if document.get("name", name) == name:
        return []
    return [Violation("name", f"cannot change: the name in the path is {quoted(name)}")]


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {quoted(repeated)} twice")
    return members


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _not_json(reason: str) -> InvalidRequest:
    return InvalidRequest([Violation("body", reason)])


def _is_within(field: str, reported: set[str]) -> bool:
    """Return whether a field, or a field that contains it, was already reported."""
    return any(field == each or field.startswith((f"{each}.", f"{each}[")) for each in reported)

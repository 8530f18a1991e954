"""Bodies of requests: JSON, read strictly, and what of a service they give."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf.field_mask_pb2 import FieldMask

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import InvalidRequest, Violation
from registry_server.gateway.names import renamed
from registry_server.model.document import read_service
from registry_server.model.requests import refuse
from registry_server.model.rules import quoted
from registry_server.model.validation import service_violations

_PATIENCE: Final = 30.0
"""Seconds in which a body must have come."""

_PATHS: Final[Mapping[str, str]] = {
    "endpoint": "endpoint",
    "capabilities": "capabilities",
    "version": "version",
    "health": "health",
    "metadata": "metadata",
    "group": "group",
    "healthCheck": "health_check",
    "ttlSeconds": "ttl",
}
"""Members of a service that an update can change, with their paths in a field mask."""


async def read_json(request: web.Request, most: int) -> Any:
    """Reads the JSON body of a request.

    Args:
        request: The request.
        most: Largest body that is taken, in bytes.

    Raises:
        web.HTTPException: It is too large, not declared as JSON, or does not come in time.
        InvalidRequest: It is not JSON, by RFC 8259 and with each key of an object once.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise web.HTTPUnsupportedMediaType(text="the body must be JSON: Content-Type: application/json, in UTF-8")
    if (request.content_length or 0) > most:
        raise too_large(most)
    try:
        async with asyncio.timeout(_PATIENCE):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(most) from None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {_PATIENCE:g} s") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise _not_json("does not arrive as its headers say: check Content-Encoding and Transfer-Encoding") from None
    return parse_json(raw)


def too_large(most: int) -> web.HTTPRequestEntityTooLarge:
    """The refusal of a body of more than ``most`` bytes."""
    return web.HTTPRequestEntityTooLarge(most, text=f"the body is larger than {most} bytes")


def parse_json(raw: bytes) -> Any:
    """Parses a body.

    Raises:
        InvalidRequest: It is not JSON, by RFC 8259 and with each key of an object once.
    """
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _not_json(f"is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _not_json(
            f"is not JSON: {error.msg} at {where}" if raw else "is empty; a JSON object is needed"
        ) from None
    except RecursionError:
        raise _not_json("is nested too deep") from None
    except ValueError as error:
        raise _not_json(f"is not JSON: {error}") from None


def registration(document: object) -> Service:
    """Reads the service of a registration.

    Raises:
        InvalidRequest: Everything that is wrong with it.
    """
    violations: list[Violation] = []
    if isinstance(document, dict) and document.get("capabilities") is None:
        violations.append(Violation("capabilities", "is required: an array, which may be empty"))
    service = read_service(document, violations)
    if violations and isinstance(document, dict):
        # Also what the rules say, so that all comes at once; but of a field only the first thing that is wrong.
        told = {field for field, _ in violations}
        violations += [each for each in renamed(service_violations(service)) if not _within(each.field, told)]
    refuse(violations)
    return service


def update(document: object, name: str) -> tuple[Service, FieldMask]:
    """Reads an update: the members that are given change as a whole, ``null`` clears one.

    Args:
        document: The parsed body.
        name: The service, as the path of the request tells it.

    Raises:
        InvalidRequest: Members that are unknown or of the wrong type, or the name of another service.
    """
    violations: list[Violation] = []
    if not isinstance(document, dict):
        read_service(document, violations)
        raise InvalidRequest(violations)
    if document.get("name", name) != name:
        violations.append(Violation("name", f"cannot change: the path names {quoted(name)}"))
    if "capabilities" in document and document["capabilities"] is None:
        violations.append(Violation("capabilities", "must be an array, not null"))
    service = read_service({**document, "name": name}, violations)
    refuse(violations)
    # With no path at all the registry would take whatever is set; the name is always there and never changes.
    paths = [path for key, path in _PATHS.items() if key in document] or ["name"]
    return service, FieldMask(paths=paths)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {quoted(twice)} twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _not_json(why: str) -> InvalidRequest:
    return InvalidRequest([Violation("body", why)])


def _within(field: str, told: set[str]) -> bool:
    """Whether something was told of the field already, or of what it is in."""
    return any(field == each or field.startswith((f"{each}.", f"{each}[")) for each in told)

"""Field names in violations: translates paths in gRPC messages to names in REST bodies, queries and headers."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from registry_server.errors import InvalidRequest, Violation

_SPECIAL: Final = (
    (re.compile(r"^health_check\.(?:http|grpc)(?=\.)"), "health_check"),
    (re.compile(r"^ttl$"), "ttlSeconds"),
    (re.compile(r"^(health_check\.(?:interval|timeout|degraded_after))$"), r"\1_ms"),
)
_HEADERS: Final = {"cursor": "Last-Event-ID", "expected_revision": "If-Match"}
_PARAMETERS: Final = {"name_pattern": "name"}
_INDEX = re.compile(r"\[[0-9]+\]$")
_UNDERSCORE = re.compile(r"_([a-z])")


@contextmanager
def rest_names() -> Iterator[None]:
    """Translate the field names of an ``InvalidRequest`` raised in this block to those of REST.

    Raises:
        InvalidRequest: The same violations with REST names.
    """
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(renamed(error.violations)) from None


def renamed(violations: tuple[Violation, ...] | list[Violation]) -> list[Violation]:
    """Return the violations with REST names."""
    return [Violation(_renamed(field), description) for field, description in violations]


def _renamed(path: str) -> str:
    root, _, rest = path.partition(".")
    # A quoted map key is always last in a path, and is kept as the client wrote it.
    head, bracket, key = rest.partition('["')
    if root == "service" and rest:
        return _camel(head) + bracket + key
    if root == "filter" and head == "labels":
        return "label." + str(json.loads('"' + key.removesuffix("]"))) if bracket else "label"
    if root == "filter":
        name = _INDEX.sub("", head)
        return _camel(_PARAMETERS.get(name, name))
    return _HEADERS.get(root) or _camel(path)


def _camel(path: str) -> str:
    for pattern, replacement in _SPECIAL:
        path = pattern.sub(replacement, path)
    return _UNDERSCORE.sub(lambda match: match[1].upper(), path)

"""Names of fields: the registry tells violations by the paths of gRPC messages, REST by those of its JSON and query."""

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
    """Lets what the registry refuses within be told by the names of REST.

    Raises:
        InvalidRequest: The one that was raised within, with those names.
    """
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(renamed(error.violations)) from None


def renamed(violations: tuple[Violation, ...] | list[Violation]) -> list[Violation]:
    """The violations with the names of REST."""
    return [Violation(_renamed(field), description) for field, description in violations]


def _renamed(path: str) -> str:
    root, _, rest = path.partition(".")
    # A quoted key of a map ends every path that has one, and is what the client wrote.
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

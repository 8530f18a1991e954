"""Field names in violations: translates paths in gRPC messages to names in REST bodies, queries and headers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ossa_common.json_shape import TEXT_FILTERS, camel_case, json_path
from ossa_common.violations import Violation
from registry_server.errors import InvalidRequest

_HEADERS: Final = {"cursor": "Last-Event-ID", "expected_revision": "If-Match"}


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
    if root == "service" and rest:
        return json_path(rest)
    if root == "filter":
        name, bracket, key = rest.partition("[")  # the key of a label, or the index of an item
        if name == "labels":
            return "label." + str(json.loads(key.removesuffix("]"))) if bracket else "label"
        return camel_case(TEXT_FILTERS.get(name, name))
    return _HEADERS.get(root) or camel_case(path)

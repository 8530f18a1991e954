"""Violations of the rules for requests and documents, and the notation of the paths in them."""

import json
import re
from typing import Final, NamedTuple

# Keeps the response to a hostile request small.
MAX_VIOLATIONS: Final = 100

_MAX_QUOTED = 64
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Violation(NamedTuple):
    """An invalid field: its path in the request, such as ``service.capabilities[1].name``, and the problem."""

    field: str
    description: str


AND_MORE: Final = Violation("...", "and more")
"""Stands for the violations that a response omits."""


def quoted(value: str) -> str:
    """Return the value as a literal, truncated to about 64 characters."""
    return repr(value) if len(value) <= _MAX_QUOTED else f"{value[:_MAX_QUOTED]!r}..."


def member(at: str, key: str) -> str:
    """Return the path of a known member of the object at ``at``; the path of the document itself is empty."""
    return f"{at}.{key}" if at else key


def keyed(at: str, key: str) -> str:
    """Return the path of a map entry, such as ``service.metadata.labels["team"]``; a long key is truncated."""
    return f"{at}[{json.dumps(key[:_MAX_QUOTED])}]"


def inside(at: str, key: str | int) -> str:
    """Return the path of any member of an object, or of an item of an array."""
    if isinstance(key, int):
        return f"{at}[{key}]"
    return member(at, key) if _PLAIN_KEY.fullmatch(key) else keyed(at, key)

"""Strict conversion of parsed JSON to protobuf values. Each violation is collected with its path."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from registry_server.errors import Violation
from registry_server.model.rules import MAX_DURATION_SECONDS, MAX_STRUCT_DEPTH, MAX_VIOLATIONS, keyed, quoted

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
NANOS_PER_SECOND: Final = 1_000_000_000
NANOS_PER_MS: Final = 1_000_000

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# RFC 3339 with up to nine fractional digits; `datetime` accepts more formats, but only six fractional digits.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_NOT_FINITE = "must be a finite number in the range of a 64-bit float"
_MAX_SHOWN_NUMBER = 1e15
_INT32 = range(-(2**31), 2**31)


def member(at: str, key: str) -> str:
    """Return the path of a known member of the object at ``at``; the path of the document itself is empty."""
    return f"{at}.{key}" if at else key


class JsonReader:
    """Converts values of parsed JSON. ``null`` means absent; an absent value becomes the empty value of its type."""

    def __init__(self, document_name: str) -> None:
        self._document_name = document_name
        """Name of the document in violations whose path is empty."""
        self.violations: list[Violation] = []
        """Violations found so far, at most ``MAX_VIOLATIONS``."""

    def add_violation(self, at: str, description: str) -> None:
        """Record a violation at a path."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(at or self._document_name, description))

    def members(self, value: object, at: str, known: Collection[str]) -> dict[str, object]:
        """Return the members of an object that are not null; a member that is not ``known`` is a violation."""
        members = self.mapping(value, at)
        for key in members:
            if key not in known:
                self.add_violation(_inside(at, key), f"is not a field; the fields are {', '.join(known)}")
        return {key: item for key, item in members.items() if item is not None}

    def mapping(self, value: object, at: str) -> Mapping[str, object]:
        """Return an object with any members."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.add_violation(at, f"must be an object, not {_kind(value)}")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.add_violation(at, f"has a key that is {_kind(key)}; keys must be text")
                return {}
        return value

    def items(self, value: object, at: str) -> Iterator[tuple[str, object]]:
        """Yield the path and value of each item of an array; a null item is a violation."""
        if value is not None and not isinstance(value, list | tuple):
            self.add_violation(at, f"must be an array, not {_kind(value)}")
            return
        for index, item in enumerate(value or ()):
            here = f"{at}[{index}]"
            if item is None:
                self.add_violation(here, "must not be null")
            else:
                yield here, item

    def text(self, value: object, at: str) -> str:
        """Return a string."""
        if value is None:
            return ""
        if not isinstance(value, str):
            self.add_violation(at, f"must be text, not {_kind(value)}")
            return ""
        if not _is_unicode(value):
            self.add_violation(at, f"{quoted(value)} is not Unicode text: it contains a lone surrogate")
            return ""
        return value

    def texts(self, value: object, at: str) -> dict[str, str]:
        """Return an object whose values are all strings."""
        texts: dict[str, str] = {}
        for key, item in self.mapping(value, at).items():
            here = keyed(at, key)
            if item is None:
                self.add_violation(here, "must not be null")
            else:
                texts[self.text(key, here)] = self.text(item, here)
        return texts

    def int32(self, value: object, at: str) -> int:
        """Return a 32-bit integer. JSON does not distinguish 3 from 3.0, so both are accepted."""
        if value is None:
            return 0
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in _INT32:
            self.add_violation(at, f"must be a whole number of 32 bits, not {_kind(value)}")
            return 0
        return value

    def duration(self, value: object, at: str, *, nanos_per_unit: int) -> Duration | None:
        """Return a duration given as a number of units of ``nanos_per_unit``, ``None`` if it is absent or wrong."""
        number = self._finite(value, at)
        if number is None:
            return None
        if abs(number) * nanos_per_unit > MAX_DURATION_SECONDS * NANOS_PER_SECOND:
            self.add_violation(at, "is too long; at most 10,000 years are allowed")
            return None
        # Integers are converted exactly; a float loses its nanoseconds beyond a few months.
        nanos = number * nanos_per_unit if isinstance(number, int) else round(number * nanos_per_unit)
        seconds, rest = divmod(abs(nanos), NANOS_PER_SECOND)
        if nanos < 0:
            seconds, rest = -seconds, -rest
        # Rounding to zero would change the meaning: a `ttlSeconds` of 0 means permanent.
        if number and not nanos:
            self.add_violation(at, "is shorter than a nanosecond")
            return None
        return Duration(seconds=seconds, nanos=rest)

    def timestamp(self, value: object, at: str) -> Timestamp | None:
        """Return a time given in ISO 8601 with an offset from UTC, ``None`` if it is absent or wrong."""
        text = self.text(value, at)
        if value is None or not isinstance(value, str):
            return None
        match = _TIME.fullmatch(text)
        try:
            moment = datetime.fromisoformat(match[1] + match[3]) if match else None
        except ValueError:
            moment = None
        if match is None or moment is None:
            self.add_violation(at, f"{quoted(text)} is not a time such as 2026-11-24T05:00:00.000Z")
            return None
        return Timestamp(seconds=(moment - EPOCH) // timedelta(seconds=1), nanos=int((match[2] or "").ljust(9, "0")))

    def struct(self, value: object, at: str, struct: Struct) -> None:
        """Copy an object with any content into ``struct``."""
        if value is not None:
            struct.SetInParent()
            self._fill_struct(self.mapping(value, at), at, struct, 1)

    def _fill_struct(self, members: Mapping[str, object], at: str, struct: Struct, depth: int) -> None:
        for key, item in members.items():
            if not _is_unicode(key):
                self.add_violation(keyed(at, key), "the key is not Unicode text: it contains a lone surrogate")
            else:
                self._fill_value(item, at, key, struct.fields[key], depth)

    def _fill_value(self, item: object, at: str, key: str | int, value: Value, depth: int) -> None:
        # The path is built only for containers and violations, which keeps plain values cheap.
        if isinstance(item, str) and _is_unicode(item):
            value.string_value = item
        elif item is None:
            value.null_value = NULL_VALUE
        elif isinstance(item, bool):
            value.bool_value = item
        elif isinstance(item, int | float):
            if _is_finite(item):
                value.number_value = item
            else:
                self.add_violation(_inside(at, key), _NOT_FINITE)
        elif isinstance(item, Mapping | list | tuple):
            self._fill_container(item, _inside(at, key), value, depth + 1)
        else:
            self.text(item, _inside(at, key))

    def _fill_container(self, item: Mapping[str, object] | Sequence[object], at: str, value: Value, depth: int) -> None:
        if depth > MAX_STRUCT_DEPTH:
            self.add_violation(at, f"is nested more than {MAX_STRUCT_DEPTH} levels deep; reduce the nesting")
        elif isinstance(item, Mapping):
            value.struct_value.SetInParent()
            self._fill_struct(self.mapping(item, at), at, value.struct_value, depth)
        else:
            value.list_value.SetInParent()
            for index, element in enumerate(item):
                self._fill_value(element, at, index, value.list_value.values.add(), depth)

    def _finite(self, value: object, at: str) -> int | float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.add_violation(at, f"must be a number, not {_kind(value)}")
            return None
        if not _is_finite(value):
            self.add_violation(at, _NOT_FINITE)
            return None
        return value


def _inside(at: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{at}[{key}]"
    return member(at, key) if _PLAIN_KEY.fullmatch(key) else keyed(at, key)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer above the largest double
        return False


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds: Mapping[type, str] = {bool: "a boolean", str: "text", list: "an array", tuple: "an array", dict: "an object"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value:.10g}" if abs(value) < _MAX_SHOWN_NUMBER else "a number of this size"
    return kinds.get(type(value), f"a {type(value).__name__}")

"""Strict conversion of parsed JSON or YAML to the values of message fields."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.json_shape import MAX_DURATION_SECONDS, MAX_STRUCT_DEPTH, NANOS_PER_SECOND, STATUS_BY_WORD
from ossa_common.violations import MAX_VIOLATIONS, Violation, inside, keyed, quoted

MAX_VALUES: Final = 32_768
"""Maximum number of values in all schemas and details of a document. A service has at most 128 KiB, and each value
takes at least four bytes."""
MAX_ITEMS: Final = 1_000
"""Maximum number of items of other arrays and objects; the registry accepts at most 256."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# RFC 3339 with up to nine fractional digits; `datetime` accepts more formats, but only six fractional digits.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_NOT_FINITE = "must be a finite number in the range of a 64-bit float"
_MAX_EXACT_INTEGER = 2**53
_NULL_ITEM = "must not be null"
_MAX_SHOWN_NUMBER = 1e15
_INT32 = range(-(2**31), 2**31)
# Tuples, because `int | float` builds a union object on each evaluation.
_NUMBERS = (int, float)
_CONTAINERS = (dict, list, tuple)
_KINDS: Final[Mapping[type, str]] = {
    NoneType: "null",
    bool: "a boolean",
    str: "text",
    list: "an array",
    dict: "an object",
}


class ValueReader:
    """Reads one document and collects its violations. A wrong value becomes the empty value of its type."""

    def __init__(self, document_name: str, number_hint: str = "") -> None:
        self._document_name = document_name
        """Name of the document in violations whose path is empty."""
        self._number_hint = number_hint
        self._values = 0
        """Number of values in the structs of this document."""
        self.violations: list[Violation] = []
        """Violations found so far, at most ``MAX_VIOLATIONS``."""

    @property
    def is_full(self) -> bool:
        """Whether further violations are dropped."""
        return len(self.violations) >= MAX_VIOLATIONS

    def add_violation(self, at: str, description: str) -> None:
        """Record a violation at a path."""
        if not self.is_full:
            self.violations.append(Violation(at or self._document_name, description))

    def read_struct(self, value: object, at: str, struct: Struct) -> None:
        """Copy an object with any content into ``struct``."""
        struct.SetInParent()
        self._fill_struct(value, at, struct, 1)

    def read_schema(self, value: object, at: str, struct: Struct) -> None:
        """Copy a JSON Schema into ``struct``; the schemas ``true`` and ``false`` have equivalent objects."""
        if value is True:
            struct.SetInParent()
        elif value is False:
            struct.fields["not"].struct_value.SetInParent()
        else:
            self.read_struct(value, at, struct)

    def members(self, value: object, at: str) -> dict[str, Any]:
        """Return an object with any members; an empty one if it is wrong."""
        if not isinstance(value, dict):
            self.add_violation(at, f"must be an object, not {_kind(value)}")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.add_violation(at, f"has a key that is {_kind(key)}; keys must be text")
                return {}
        return value

    def items(self, value: object, at: str) -> Iterator[tuple[str, object]]:
        """Yield the path and value of each item of an array; a null item is a violation."""
        if not isinstance(value, list):
            self.add_violation(at, f"must be an array, not {_kind(value)}")
            return
        if not self._check_items(value, at):
            return
        for index, item in enumerate(value):
            here = f"{at}[{index}]"
            if item is None:
                self.add_violation(here, _NULL_ITEM)
            else:
                yield here, item

    def text(self, value: object, at: str) -> str:
        """Return a string."""
        if not isinstance(value, str):
            hint = self._number_hint if isinstance(value, _NUMBERS) else ""
            self.add_violation(at, f"must be text, not {_kind(value)}{hint}")
            return ""
        if not _is_unicode(value):
            self.add_violation(at, f"{quoted(value)} is not Unicode text: it contains a lone surrogate")
            return ""
        return value

    def texts(self, value: object, at: str) -> dict[str, str]:
        """Return an object whose values are all strings."""
        texts: dict[str, str] = {}
        members = self.members(value, at)
        if not self._check_items(members, at):
            return texts
        for key, item in members.items():
            if isinstance(item, str) and item.isascii() and key.isascii():
                texts[key] = item
            elif item is None:
                self.add_violation(keyed(at, key), _NULL_ITEM)
            else:
                here = keyed(at, key)
                texts[self.text(key, here)] = self.text(item, here)
        return texts

    def int32(self, value: object, at: str) -> int:
        """Return a 32-bit integer. JSON does not distinguish 3 from 3.0, so both are accepted."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in _INT32:
            self.add_violation(at, f"must be a whole number of 32 bits, not {_kind(value)}")
            return 0
        return value

    def boolean(self, value: object, at: str) -> bool:
        """Return a boolean."""
        if not isinstance(value, bool):
            self.add_violation(at, f"must be true or false, not {_kind(value)}")
        return value is True

    def status(self, value: object, at: str) -> HealthStatus.ValueType:
        """Return the status of a word."""
        word = self.text(value, at)
        if word not in STATUS_BY_WORD and (word or value == ""):
            self.add_violation(at, f"{quoted(word)} is not a status; use one of {', '.join(STATUS_BY_WORD)}")
        return STATUS_BY_WORD.get(word, HealthStatus.HEALTH_STATUS_UNSPECIFIED)

    def duration(self, value: object, at: str, nanos_per_unit: int) -> Duration | None:
        """Return a duration given as a number of units of ``nanos_per_unit``, ``None`` if it is wrong."""
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
            self.add_violation(at, f"must be a number, not {_kind(value)}")
            return None
        if not _is_finite(value):
            self.add_violation(at, _NOT_FINITE)
            return None
        if abs(value) * nanos_per_unit > MAX_DURATION_SECONDS * NANOS_PER_SECOND:
            self.add_violation(at, "is too long; at most 10,000 years are allowed")
            return None
        # Integers are converted exactly; a float loses its nanoseconds beyond a few months.
        nanos = value * nanos_per_unit if isinstance(value, int) else round(value * nanos_per_unit)
        # Rounding to zero would change the meaning: a `ttlSeconds` of 0 means permanent.
        if value and not nanos:
            self.add_violation(at, "is shorter than a nanosecond")
            return None
        seconds, rest = divmod(abs(nanos), NANOS_PER_SECOND)
        return Duration(seconds=seconds, nanos=rest) if nanos > 0 else Duration(seconds=-seconds, nanos=-rest)

    def timestamp(self, value: object, at: str) -> Timestamp | None:
        """Return a time given in ISO 8601 with an offset from UTC, ``None`` if it is wrong."""
        text = self.text(value, at)
        if not isinstance(value, str):
            return None
        match = _TIME.fullmatch(text)
        try:
            moment = datetime.fromisoformat(match[1] + match[3]) if match else None
        except ValueError:
            moment = None
        if match is None or moment is None:
            self.add_violation(at, f"{quoted(text)} is not a time such as 2026-11-24T05:00:00.000Z")
            return None
        return Timestamp(seconds=(moment - _EPOCH) // timedelta(seconds=1), nanos=int((match[2] or "").ljust(9, "0")))

    def _fill_struct(self, value: object, at: str, struct: Struct, depth: int) -> None:
        members = self.members(value, at)
        if not self._count(members, at):
            return
        fields = struct.fields
        for key, item in members.items():
            if _is_unicode(key):
                self._fill_value(item, at, key, fields[key], depth)
            else:
                self.add_violation(keyed(at, key), "the key is not Unicode text: it contains a lone surrogate")

    def _fill_value(self, item: object, at: str, key: str | int, value: Value, depth: int) -> None:
        # The path is built only for containers and violations, which keeps plain values cheap.
        if isinstance(item, str) and _is_unicode(item):
            value.string_value = item
        elif item is None:
            value.null_value = NULL_VALUE
        elif isinstance(item, bool):
            value.bool_value = item
        elif isinstance(item, _NUMBERS):
            if not _is_finite(item):
                self.add_violation(inside(at, key), _NOT_FINITE)
            elif abs(item) > _MAX_EXACT_INTEGER and float(item) != item:  # Python compares them exactly
                self.add_violation(
                    inside(at, key), f"would become {float(item):.17g} as a 64-bit float; send it as text"
                )
            else:
                value.number_value = item
        elif isinstance(item, _CONTAINERS):
            self._fill_container(item, inside(at, key), value, depth + 1)
        else:
            self.text(item, inside(at, key))

    def _fill_container(
        self, item: dict[str, Any] | list[Any] | tuple[Any, ...], at: str, value: Value, depth: int
    ) -> None:
        if depth > MAX_STRUCT_DEPTH:
            self.add_violation(at, f"is nested more than {MAX_STRUCT_DEPTH} levels deep; reduce the nesting")
        elif isinstance(item, dict):
            value.struct_value.SetInParent()
            self._fill_struct(item, at, value.struct_value, depth)
        elif self._count(item, at):
            value.list_value.SetInParent()
            add = value.list_value.values.add
            for index, element in enumerate(item):
                self._fill_value(element, at, index, add(), depth)

    def _check_items(self, container: Collection[object], at: str) -> bool:
        """Return whether an array or object is short enough to be walked."""
        if len(container) > MAX_ITEMS:
            self.add_violation(at, f"has {len(container)} items; at most {MAX_ITEMS} are read")
        return len(container) <= MAX_ITEMS

    def _count(self, container: Collection[object], at: str) -> bool:
        """Count the values of a container, and return whether the document still has at most ``MAX_VALUES``."""
        before = self._values
        self._values += len(container)
        if before <= MAX_VALUES < self._values:
            self.add_violation(at, f"is too large: a service may have at most {MAX_VALUES} values")
        return self._values <= MAX_VALUES


def struct_of(value: object, at: str) -> Struct:
    """Return an object with any content as a struct.

    Raises:
        ValueError: It cannot be converted exactly; the message has the path of each violation.
    """
    reader, struct = ValueReader(at), Struct()
    reader.read_struct(value, at, struct)
    if reader.violations:
        raise ValueError("; ".join(f"{field}: {description}" for field, description in reader.violations))
    return struct


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
    if isinstance(value, _NUMBERS) and not isinstance(value, bool):
        return f"the number {value:.10g}" if abs(value) < _MAX_SHOWN_NUMBER else "a number of this size"
    return _KINDS.get(type(value), f"a {type(value).__name__}")

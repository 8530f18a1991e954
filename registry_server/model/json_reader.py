"""Reads parsed JSON strictly: every value of the wrong shape is noted under its path, and reading goes on."""

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

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# RFC 3339 with up to nine digits of a second; what `datetime` alone accepts is wider and ends at microseconds.
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_NOT_FINITE = "must be a finite number that a 64-bit float holds"
_MAX_SHOWN = 1e15
_INT32 = range(-(2**31), 2**31)


def member(at: str, key: str) -> str:
    """Path of a known member of the object at ``at``; the empty path is the document itself."""
    return f"{at}.{key}" if at else key


class JsonReader:
    """Takes values out of parsed JSON. ``null`` is the same as absent; absent gives the empty value of the type."""

    def __init__(self, whole: str) -> None:
        self._whole = whole
        """What the document itself is called, whose path is empty."""
        self.violations: list[Violation] = []
        """What was wrong with the values read so far; those past ``MAX_VIOLATIONS`` are dropped."""

    def note(self, at: str, description: str) -> None:
        """Takes down a violation."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(at or self._whole, description))

    def members(self, value: object, at: str, known: Collection[str]) -> dict[str, object]:
        """Members of an object that are not null; one that is not ``known`` is a violation."""
        members = self.mapping(value, at)
        for key in members:
            if key not in known:
                self.note(_inside(at, key), f"is not a field; known are {', '.join(known)}")
        return {key: item for key, item in members.items() if item is not None}

    def mapping(self, value: object, at: str) -> Mapping[str, object]:
        """An object with any members."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.note(at, f"must be an object, not {_kind(value)}")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.note(at, f"has a key that is {_kind(key)}; keys must be text")
                return {}
        return value

    def items(self, value: object, at: str) -> Iterator[tuple[str, object]]:
        """Path and value of each item of an array; none of them may be null."""
        if value is not None and not isinstance(value, list | tuple):
            self.note(at, f"must be an array, not {_kind(value)}")
            return
        for index, item in enumerate(value or ()):
            here = f"{at}[{index}]"
            if item is None:
                self.note(here, "must not be null")
            else:
                yield here, item

    def text(self, value: object, at: str) -> str:
        """Text."""
        if value is None:
            return ""
        if not isinstance(value, str):
            self.note(at, f"must be text, not {_kind(value)}")
            return ""
        if not _is_unicode(value):
            self.note(at, f"{quoted(value)} is not Unicode text: it has half of a surrogate pair")
            return ""
        return value

    def texts(self, value: object, at: str) -> dict[str, str]:
        """An object whose members are all text."""
        texts: dict[str, str] = {}
        for key, item in self.mapping(value, at).items():
            here = keyed(at, key)
            if item is None:
                self.note(here, "must not be null")
            else:
                texts[self.text(key, here)] = self.text(item, here)
        return texts

    def int32(self, value: object, at: str) -> int:
        """A whole number of 32 bits; JSON does not tell 3 from 3.0."""
        if value is None:
            return 0
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value not in _INT32:
            self.note(at, f"must be a whole number of 32 bits, not {_kind(value)}")
            return 0
        return value

    def duration(self, value: object, at: str, *, nanos_per_unit: int) -> Duration | None:
        """A number of some unit of time."""
        number = self._finite(value, at)
        if number is None:
            return None
        if abs(number) * nanos_per_unit > MAX_DURATION_SECONDS * NANOS_PER_SECOND:
            self.note(at, "is too long; at most 10,000 years are allowed")
            return None
        # Whole units are exact whatever their size; a float has no nanosecond left beyond some months.
        nanos = number * nanos_per_unit if isinstance(number, int) else round(number * nanos_per_unit)
        seconds, rest = divmod(abs(nanos), NANOS_PER_SECOND)
        if nanos < 0:
            seconds, rest = -seconds, -rest
        # Rounded to zero it could mean something else: a `ttlSeconds` of 0 is permanent.
        if number and not nanos:
            self.note(at, "is shorter than a nanosecond")
            return None
        return Duration(seconds=seconds, nanos=rest)

    def timestamp(self, value: object, at: str) -> Timestamp | None:
        """A time in ISO 8601 with its offset from UTC."""
        text = self.text(value, at)
        if value is None or not isinstance(value, str):
            return None
        match = _TIME.fullmatch(text)
        try:
            moment = datetime.fromisoformat(match[1] + match[3]) if match else None
        except ValueError:
            moment = None
        if match is None or moment is None:
            self.note(at, f"{quoted(text)} is not a time such as 2026-11-24T05:00:00.000Z")
            return None
        return Timestamp(seconds=(moment - EPOCH) // timedelta(seconds=1), nanos=int((match[2] or "").ljust(9, "0")))

    def struct(self, value: object, at: str, struct: Struct) -> None:
        """An object with any content, put into ``struct``."""
        if value is not None:
            struct.SetInParent()
            self._fill_struct(self.mapping(value, at), at, struct, 1)

    def _fill_struct(self, members: Mapping[str, object], at: str, struct: Struct, depth: int) -> None:
        for key, item in members.items():
            if not _is_unicode(key):
                self.note(keyed(at, key), "the key is not Unicode text: it has half of a surrogate pair")
            else:
                self._fill_value(item, at, key, struct.fields[key], depth)

    def _fill_value(self, item: object, at: str, key: str | int, value: Value, depth: int) -> None:
        # The path is put together only where it is needed: for containers, and for what is wrong.
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
                self.note(_inside(at, key), _NOT_FINITE)
        elif isinstance(item, Mapping | list | tuple):
            self._fill_container(item, _inside(at, key), value, depth + 1)
        else:
            self.text(item, _inside(at, key))

    def _fill_container(self, item: Mapping[str, object] | Sequence[object], at: str, value: Value, depth: int) -> None:
        if depth > MAX_STRUCT_DEPTH:
            self.note(at, f"is nested more than {MAX_STRUCT_DEPTH} levels deep; make it flatter")
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
            self.note(at, f"must be a number, not {_kind(value)}")
            return None
        if not _is_finite(value):
            self.note(at, _NOT_FINITE)
            return None
        return value


def _inside(at: str, key: str | int) -> str:
    if isinstance(key, int):
        return f"{at}[{key}]"
    return member(at, key) if _PLAIN_KEY.fullmatch(key) else keyed(at, key)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond what a double holds
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
        return f"the number {value:.10g}" if abs(value) < _MAX_SHOWN else "a number of this size"
    return kinds.get(type(value), f"a {type(value).__name__}")

"""Query strings: parsed strictly; all violations are reported at once."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import ServiceFilter, TagMatch
from ossa_common.json_shape import STATUS_BY_WORD, TEXT_FILTERS, camel_case
from ossa_common.violations import MAX_VIOLATIONS, Violation, quoted
from registry_server.gateway.names import renamed
from registry_server.model.filters import compile_filter
from registry_server.model.requests import MAX_PAGE_SIZE, raise_if_invalid

LABEL: Final = "label."
"""Prefix of parameters that filter by a label."""

TAG_MATCHES: Final[Mapping[str, TagMatch.ValueType]] = {"any": TagMatch.TAG_MATCH_ANY, "all": TagMatch.TAG_MATCH_ALL}

_TEXTS: Final = {camel_case(name): field for field, name in TEXT_FILTERS.items()}
"""Parameters that are text fields of ``ServiceFilter``."""

FILTERS: Final = (*_TEXTS, "health", "tags", "tagMatch", "available")
"""Filter parameters, without those for labels."""
_LISTS: Final = ("health", "tags")
"""Parameters with several values, which are separated by commas or in repeated parameters."""
_ECHO_NAMES: Final = {"name": "namePattern", "health": "healthStatus"}
"""Members of the filter in answers whose name in OSSA is not that of the parameter."""
PAGE: Final = ("pageSize", "pageToken")
EVENTS: Final = ("snapshot", "lastEventId")

_MAX_DIGITS = 9


class Query:
    """The parameters of one request. Each method reads one; ``check`` raises if any was not valid."""

    def __init__(self, items: Mapping[str, str], known: Collection[str] = (), *, labels: bool = False) -> None:
        """Check the names of the parameters.

        Args:
            items: Names and values; a repeated parameter occurs repeatedly (``MultiDict``).
            known: Parameters that this path supports.
            labels: Whether it also supports ``label.KEY``.
        """
        self._values: dict[str, str] = {}
        self.violations: list[Violation] = []
        for name, value in items.items():
            if name not in known and not (labels and name.startswith(LABEL)):
                supported = ", ".join((*known, *([f"{LABEL}KEY"] if labels else []))) or "none"
                self._add_violation(name, f"is not a parameter of this path; supported are {supported}")
            elif name in self._values and name in _LISTS:
                self._values[name] += f",{value}"
            elif name in self._values:
                self._add_violation(name, "is repeated; pass it once")
            elif not value and name != "tags" and not name.startswith(LABEL):
                self._add_violation(name, "is empty; omit it")
            elif not (name + value).isascii() and not _is_unicode(name + value):
                self._add_violation(name, "is not UTF-8 text")
            else:
                self._values[name] = value

    def text(self, name: str) -> str:
        """Return the text of a parameter; empty if it is absent."""
        return self._values.get(name, "")

    def flag(self, name: str) -> bool:
        """Return whether a parameter is ``true``."""
        return self._choice(name, {"true": True, "false": False}) or False

    def time(self, name: str) -> Timestamp | None:
        """Return a time in ISO 8601 with a time zone; ``None`` if it is absent."""
        text = self.text(name)
        if not text:
            return None
        timestamp = Timestamp()
        try:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is not None:
                timestamp.FromDatetime(moment)
                return timestamp
        except (ValueError, OverflowError):  # with its zone, it may be before the year 1 or after the year 9999
            pass
        self._add_violation(name, f"{quoted(text)} is not a time such as 2026-11-24T12:00:00Z")
        return None

    def page_size(self) -> int:
        """Return the page size; 0 if it is absent."""
        return self.number("pageSize", MAX_PAGE_SIZE)

    def number(self, name: str, most: int) -> int:
        """Return a whole number from 1 to ``most``; 0 if it is absent."""
        text = self.text(name)
        if not text:
            return 0
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0
        if not 1 <= number <= most:
            self._add_violation(name, f"{quoted(text)} is not a whole number from 1 to {most}")
        return number

    def filter(self) -> ServiceFilter:
        """Return the filter; record its violations with their REST names."""
        filter_ = ServiceFilter(**{field: self.text(name) for name, field in _TEXTS.items()})  # type: ignore[arg-type]
        words = self._list("health")
        if self.text("health") and not words:
            self._add_violation("health", "is empty; omit it")
        for word in words:
            status = STATUS_BY_WORD.get(word.lower())
            if status is not None:
                filter_.health.append(status)
            else:
                self._add_violation("health", f"{quoted(word)} is not a status; use one of {', '.join(STATUS_BY_WORD)}")
        filter_.tags.extend(self._list("tags"))
        match = self._choice("tagMatch", TAG_MATCHES)
        if match is not None:
            filter_.tag_match = match
        filter_.available = self.flag("available")
        for name, value in self._values.items():
            if name.startswith(LABEL):
                filter_.labels[name.removeprefix(LABEL)] = value
        filter_violations: list[Violation] = []
        compile_filter(filter_, "filter", filter_violations)
        self.violations += renamed(filter_violations)
        return filter_

    def echo(self) -> dict[str, Any]:
        """Return the filter parameters as the answer repeats them, with the names and values of OSSA's filter."""
        filters: dict[str, Any] = {
            _ECHO_NAMES.get(name, name): self._values[name] for name in FILTERS if self.text(name)
        }
        if "tags" in filters:
            filters["tags"] = self._list("tags")
        if "healthStatus" in filters:
            filters["healthStatus"] = ",".join(self._list("health")).lower()
        if "available" in filters:
            filters["available"] = self.flag("available")
        labels = {name.removeprefix(LABEL): value for name, value in self._values.items() if name.startswith(LABEL)}
        return filters | ({"labels": labels} if labels else {})

    def check(self) -> None:
        """Raise if a parameter was not valid.

        Raises:
            InvalidRequest: All violations.
        """
        raise_if_invalid(self.violations)

    def _list(self, name: str) -> list[str]:
        return [part for each in self.text(name).split(",") if (part := each.strip())]

    def _choice(self, name: str, choices: Mapping[str, Any]) -> Any:
        text = self.text(name)
        if text and text not in choices:
            self._add_violation(name, f"{quoted(text)} is not one of {', '.join(choices)}")
        return choices.get(text)

    def _add_violation(self, name: str, description: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(name, description))


def reject_parameters(items: Mapping[str, str]) -> None:
    """Reject every parameter, for paths that have none."""
    if items:
        Query(items).check()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

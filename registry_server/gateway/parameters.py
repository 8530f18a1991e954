"""Query strings: read strictly, everything that is wrong is told at once."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from ossa.registry.v1.service_pb2 import ServiceFilter, TagMatch
from registry_server.errors import Violation
from registry_server.gateway.names import renamed
from registry_server.model.document import STATUS_BY_WORD
from registry_server.model.filters import compile_filter
from registry_server.model.requests import LARGEST_PAGE, refuse
from registry_server.model.rules import quoted

LABEL: Final = "label."
"""What the names of parameters begin with that ask for a label."""

TAG_MATCHES: Final[Mapping[str, TagMatch.ValueType]] = {"any": TagMatch.TAG_MATCH_ANY, "all": TagMatch.TAG_MATCH_ALL}

_TEXTS: Final[Mapping[str, str]] = {
    "name": "name_pattern",
    "capability": "capability",
    "capabilityVersion": "capability_version",
    "version": "version",
    "environment": "environment",
    "group": "group",
}
"""Parameters that are fields of ``ServiceFilter`` as they stand."""

FILTERS: Final = (*_TEXTS, "health", "tags", "tagMatch")
"""Parameters that choose services, beside those for labels."""
PAGE: Final = ("pageSize", "pageToken")
EVENTS: Final = ("snapshot", "lastEventId")

_LONGEST_NUMBER = 9
_MOST_REPORTED = 100


class Query:
    """The parameters of one request. Each method reads one; ``check`` refuses what was wrong with any of them."""

    def __init__(self, items: Mapping[str, str], known: Collection[str] = (), *, labels: bool = False) -> None:
        """Takes the parameters.

        Args:
            items: Names and values, a name for each time that it was given (``MultiDict``).
            known: Parameters that there are.
            labels: Whether ``label.KEY`` may be given too.
        """
        self._values: dict[str, str] = {}
        self.violations: list[Violation] = []
        for name, value in items.items():
            if name not in known and not (labels and name.startswith(LABEL)):
                there = ", ".join((*known, *([f"{LABEL}KEY"] if labels else []))) or "none"
                self._note(name, f"is not a parameter of this path; known are {there}")
            elif name in self._values:
                self._note(name, "is given more than once; give it once, a list with commas")
            elif not value and not name.startswith(LABEL):
                self._note(name, "is empty; leave it out")
            elif not (name + value).isascii() and not _is_unicode(name + value):
                self._note(name, "is not UTF-8 text")
            else:
                self._values[name] = value

    def text(self, name: str) -> str:
        """Text as it stands; empty if it is not given."""
        return self._values.get(name, "")

    def flag(self, name: str) -> bool:
        """``true`` or ``false``."""
        return self._choice(name, {"true": True, "false": False}) or False

    def page_size(self) -> int:
        """The size of a page; 0 if it is not given."""
        text = self.text("pageSize")
        if not text:
            return 0
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER else 0
        if not 1 <= number <= LARGEST_PAGE:
            self._note("pageSize", f"{quoted(text)} is not a whole number from 1 to {LARGEST_PAGE}")
        return number

    def filter(self) -> ServiceFilter:
        """The filter that the parameters make; what the registry would refuse of it is noted here already."""
        filter_ = ServiceFilter(**{field: self.text(name) for name, field in _TEXTS.items()})  # type: ignore[arg-type]
        for word in self._list("health"):
            if word in STATUS_BY_WORD:
                filter_.health.append(STATUS_BY_WORD[word])
            else:
                self._note("health", f"{quoted(word)} is not a status; use one of {', '.join(STATUS_BY_WORD)}")
        filter_.tags.extend(self._list("tags"))
        match = self._choice("tagMatch", TAG_MATCHES)
        if match is not None:
            filter_.tag_match = match
        for name, value in self._values.items():
            if name.startswith(LABEL):
                filter_.labels[name.removeprefix(LABEL)] = value
        found: list[Violation] = []
        compile_filter(filter_, "filter", found)
        self.violations += renamed(found)
        return filter_

    def echo(self) -> dict[str, Any]:
        """The filter as an answer repeats it: what was given, lists as arrays."""
        given: dict[str, Any] = {name: self._values[name] for name in FILTERS if name in self._values}
        if "tags" in given:
            given["tags"] = self._list("tags")
        labels = {name.removeprefix(LABEL): value for name, value in self._values.items() if name.startswith(LABEL)}
        return given | ({"labels": labels} if labels else {})

    def check(self) -> None:
        """Ends the reading.

        Raises:
            InvalidRequest: Everything that was wrong.
        """
        refuse(self.violations)

    def _list(self, name: str) -> list[str]:
        text = self.text(name)
        return text.split(",") if text else []

    def _choice(self, name: str, choices: Mapping[str, Any]) -> Any:
        text = self.text(name)
        if text and text not in choices:
            self._note(name, f"{quoted(text)} is not one of {', '.join(choices)}")
        return choices.get(text)

    def _note(self, name: str, description: str) -> None:
        if len(self.violations) < _MOST_REPORTED:
            self.violations.append(Violation(name, description))


def none_taken(items: Mapping[str, str]) -> None:
    """Refuses every parameter, for paths that take none."""
    if items:
        Query(items).check()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

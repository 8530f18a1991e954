"""Version filters: exact text or a range in npm's notation over Semantic Versioning 2.0.0.

The notation and its rule for pre-releases are those of https://github.com/npm/node-semver (README, "Ranges"). They are
implemented here because ``semantic_version.NpmSpec`` 2.10 is wrong for pre-releases: it finds 2.0.0-rc.2 in
``<2.0.0-rc.1``, 1.2.3 in ``=1.2.3-rc.1`` and no version in ``~1.2.0-rc.1``.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

MAX_FILTER_LENGTH: Final = 128
"""Maximum length of a filter, and of a version that is parsed as SemVer."""

# A fleet has few distinct versions. The limit bounds the memory that a hostile client can use (about 300 bytes each).
_MAX_CACHED_VERSIONS = 8_192

# Plain tuples in the order of precedence, so that comparisons run in C: each candidate service is compared.
_Prerelease: TypeAlias = tuple[tuple[int, int, str], ...]
_Key: TypeAlias = tuple[int, int, int, int, _Prerelease]

_NUMBER = r"0|[1-9][0-9]*"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SUFFIXES = rf"(?:-(?P<prerelease>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
_VERSION = re.compile(rf"v?(?P<major>{_NUMBER})(?:\.(?P<minor>{_NUMBER}))?(?:\.(?P<patch>{_NUMBER}))?{_SUFFIXES}")
_PART = rf"{_NUMBER}|[xX*]"
_PARTIAL = re.compile(
    rf"(?P<operator>[<>]=?|~>?|[=^]|)v?(?P<major>{_PART})(?:\.(?P<minor>{_PART})(?:\.(?P<patch>{_PART}){_SUFFIXES})?)?"
)
_RANGE_CHARACTERS = re.compile(r"[<>=^~*|\s]")
_X_RANGE = re.compile(r"v?(?:[0-9]+\.){1,2}[xX](?:\.[0-9xX]+)?")
_SPACE_AFTER_OPERATOR = re.compile(r"([<>=^~])\s+(?=[0-9vxX*])")
_OPERATORS: Final[dict[str, Callable[[_Key, _Key], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}
# npm ends a half-open range at `-0`, the lowest pre-release, so that pre-releases of the excluded version do not match.
_LOWEST: _Prerelease = ((0, 0, ""),)
_ZERO: _Key = (0, 0, 0, 1, ())


class _NotARange(Exception):
    """The text of a filter is not a range, and so matches only the version that equals it."""


@dataclass(frozen=True, slots=True)
class _Comparator:
    """A comparison such as ``>=1.2.3``."""

    holds: Callable[[_Key, _Key], bool]
    bound: _Key


_Alternative: TypeAlias = tuple[_Comparator, ...]


@dataclass(frozen=True, slots=True)
class VersionFilter:
    """A parsed version filter."""

    text: str
    """The text of the filter."""
    exact: str | None
    """The only version that matches if the text is not a range; an index lookup can then replace ``matches``."""
    _alternatives: tuple[_Alternative, ...] = field(default=(), repr=False)

    def matches(self, version: str) -> bool:
        """Return whether a version matches. Text that is not SemVer is in no range."""
        if version == self.text:
            return True
        if self.exact is not None or len(version) > MAX_FILTER_LENGTH:
            return False
        key = _key(version)
        return key is not None and any(_all_hold(alternative, key) for alternative in self._alternatives)


def parse_version_filter(text: str) -> VersionFilter:
    """Parse a version filter.

    Text matches the version that equals it, SemVer or not: ``release 5`` and ``==1.0`` are versions too. If it is also
    a range, it matches the versions in it: ``>=1.2 <2``, ``^1.4``, ``~2.1``, ``1.x``, ``<1 || >=3``, ``1.2 - 2.3``,
    ``=1.2.3``, ``*``. In a range a version may have a leading ``v`` and lack minor and patch. A pre-release lies in a
    range only if one of the compared versions is a pre-release of the same major.minor.patch.

    Args:
        text: At most 128 characters.

    Raises:
        ValueError: No version can equal the text: it is too long or contains unprintable characters.
    """
    if len(text) > MAX_FILTER_LENGTH:
        raise ValueError(f"has {len(text)} characters; at most {MAX_FILTER_LENGTH} are allowed")
    if not text.isprintable():
        raise ValueError(f"{text!r} contains control or other unprintable characters; remove them")
    if not _RANGE_CHARACTERS.search(text.strip()) and not _X_RANGE.fullmatch(text):
        return VersionFilter(text, exact=text)
    try:
        return VersionFilter(text, None, tuple(map(_alternative, text.split("||"))))
    except _NotARange:
        return VersionFilter(text, exact=text)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return versions in descending order, followed by text that is no version."""
    return sorted(
        versions, key=lambda version: ((key := _key(version)) is not None, key or _ZERO, version), reverse=True
    )


def _all_hold(alternative: _Alternative, key: _Key) -> bool:
    for comparator in alternative:
        if not comparator.holds(key, comparator.bound):
            return False
    return not key[4] or any(bound[4] and bound[:3] == key[:3] for bound in (each.bound for each in alternative))


@lru_cache(maxsize=_MAX_CACHED_VERSIONS)
def _key(version: str) -> _Key | None:
    match = _VERSION.fullmatch(version)
    if match is None:
        return None
    return _make_key(
        int(match["major"]), int(match["minor"] or 0), int(match["patch"] or 0), _identifiers(match["prerelease"])
    )


def _make_key(major: int, minor: int, patch: int, prerelease: _Prerelease = ()) -> _Key:
    # A release is above all its pre-releases.
    return major, minor, patch, 0 if prerelease else 1, prerelease


def _identifiers(prerelease: str | None) -> _Prerelease:
    # SemVer 11.4: numbers by value and below words, words by ASCII; with an equal prefix, the longer one is above.
    return tuple(
        (0, int(identifier), "") if identifier.isdigit() else (1, 0, identifier)
        for identifier in (prerelease.split(".") if prerelease else ())
    )


def _alternative(text: str) -> _Alternative:
    low, hyphen, high = (part.strip() for part in text.partition(" - "))
    if hyphen:
        return _parse_term(low, default=">=") + _parse_term(high, default="<=")
    comparators: _Alternative = ()  # with none, every release matches
    for term in _SPACE_AFTER_OPERATOR.sub(r"\1", text).split():
        comparators += _parse_term(term)
    return comparators


def _parse_term(term: str, default: str = "") -> _Alternative:
    """Return the comparators of one term. ``default`` is the operator of a hyphen range, whose ends must have none."""
    match = _PARTIAL.fullmatch(term)
    if match is None or (default and match["operator"]):
        raise _NotARange
    numbers: list[int] = []
    for part in (match["major"], match["minor"], match["patch"]):
        # Parts after an `x` are ignored: 1.x.3 is 1.x.
        if part is None or part in "xX*":
            break
        numbers.append(int(part))
    complete = len(numbers) == 3  # noqa: PLR2004 - major, minor and patch
    if match["prerelease"] and not complete:
        raise _NotARange
    symbol = match["operator"] or default
    if not numbers:
        if symbol in {"<", ">"}:  # no version
            raise _NotARange
        return ()
    filled = [*numbers, 0, 0]
    low = _make_key(filled[0], filled[1], filled[2], _identifiers(match["prerelease"]))
    if symbol == "^":
        return _between(low, _above(numbers, _leftmost_nonzero(numbers)))
    if symbol in {"~", "~>"}:
        return _between(low, _above(numbers, min(len(numbers), 2)))
    if complete:
        return _from(low) if symbol == ">=" else (_Comparator(_OPERATORS[symbol or "="], low),)
    return _compare_partial(symbol, low, _above(numbers, len(numbers)))


def _compare_partial(symbol: str, low: _Key, above: _Key) -> _Alternative:
    """Return the comparators of a partial version such as ``1.2``: all versions from ``low`` to below ``above``."""
    match symbol:
        case "<":
            return (_Comparator(operator.lt, (*low[:3], 0, _LOWEST)),)
        case "<=":
            return (_Comparator(operator.lt, above),)
        case ">":
            return _from(_make_key(*above[:3]))
        case ">=":
            return _from(low)
        case _:
            return _between(low, above)


def _between(low: _Key, above: _Key) -> _Alternative:
    return (*_from(low), _Comparator(operator.lt, above))


def _from(low: _Key) -> _Alternative:
    # `>=0.0.0` excludes nothing, not even a pre-release of 0.0.0 that another comparator asks for.
    return () if low == _ZERO else (_Comparator(operator.ge, low),)


def _above(numbers: list[int], kept: int) -> _Key:
    """Return the lowest key above all versions that start with the first ``kept`` numbers."""
    raised = [*numbers[: kept - 1], numbers[kept - 1] + 1, 0, 0]
    return raised[0], raised[1], raised[2], 0, _LOWEST


def _leftmost_nonzero(numbers: list[int]) -> int:
    """Return how many numbers a caret keeps: up to the first one that is not zero, or all of them."""
    return next((count for count, number in enumerate(numbers, 1) if number), len(numbers))

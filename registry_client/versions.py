"""Version ranges, evaluated in process with the same result as in the registry.

Supports a subset of npm's ranges (https://github.com/npm/node-semver, "Ranges"): exact versions; ``<``, ``<=``, ``>``,
``>=``, ``=``; ``^1.4``, ``~2.1``; ``1.x``, ``*``; several comparators separated by white space, which must all hold;
and ``||`` between alternatives. Hyphen ranges (``1.2 - 2.3``, equivalent to ``>=1.2 <2.4.0-0``) are not supported. A
test compares the results with those of the registry.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

_Key: TypeAlias = tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]
_Bound: TypeAlias = tuple[str, _Key]

_MAX_LENGTH: Final = 128
_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SUFFIX = rf"(?:-(?P<pre>{_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
_VERSION = re.compile(rf"v?(?P<a>{_NUMBER})(?:\.(?P<b>{_NUMBER}))?(?:\.(?P<c>{_NUMBER}))?{_SUFFIX}")
_PART = rf"(?:{_NUMBER}|[xX*])"
_TERM = re.compile(rf"(?P<op>[<>]=?|~>?|[=^]|)v?(?P<a>{_PART})(?:\.(?P<b>{_PART})(?:\.(?P<c>{_PART}){_SUFFIX})?)?")
_SPACE_AFTER_OPERATOR = re.compile(r"([<>=^~])\s+(?=[0-9vxX*])")
_IS_RANGE = re.compile(r"[<>=^~*|\s]")
_X_RANGE = re.compile(r"v?(?:[0-9]+\.){1,2}[xX](?:\.[0-9xX]+)?")
_LOWEST = ((0, 0, ""),)  # `-0`, lower than every other pre-release: npm uses it as the end of a half-open range


def matcher(text: str) -> Callable[[str], bool]:
    """Return a function that tests whether a version matches.

    Args:
        text: A version or a range, at most 128 characters.

    Returns:
        A predicate. A version that is not SemVer matches only the identical text.

    Raises:
        ValueError: The text is not a supported range.
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"has {len(text)} characters; at most {_MAX_LENGTH} are allowed")
    if not _IS_RANGE.search(text) and not _X_RANGE.fullmatch(text):
        return text.__eq__
    if " - " in text:
        raise ValueError(f"{text!r}: hyphen ranges are not supported; write `>=1.2 <2.4.0-0`")
    alternatives = [
        [bound for term in _SPACE_AFTER_OPERATOR.sub(r"\1", part.strip()).split() for bound in _bounds(term, text)]
        for part in text.split("||")
    ]

    def matches(version: str) -> bool:
        if version == text:
            return True
        key = _key(version) if len(version) <= _MAX_LENGTH else None
        return key is not None and any(_satisfies(bounds, key) for bounds in alternatives)

    return matches


def _satisfies(bounds: list[_Bound], key: _Key) -> bool:
    for symbol, bound in bounds:
        match symbol:
            case "<":
                holds = key < bound
            case "<=":
                holds = key <= bound
            case ">":
                holds = key > bound
            case ">=":
                holds = key >= bound
            case _:
                holds = key == bound
        if not holds:
            return False
    # npm: a pre-release matches only if the range names a pre-release of the same major.minor.patch version.
    return not key[4] or any(bound[4] and bound[:3] == key[:3] for _, bound in bounds)


@lru_cache(maxsize=8_192)
def _key(version: str) -> _Key | None:
    found = _VERSION.fullmatch(version)
    return _build_key(int(found["a"]), int(found["b"] or 0), int(found["c"] or 0), found["pre"]) if found else None


def _build_key(major: int, minor: int, patch: int, pre: str | None = None) -> _Key:
    # SemVer 11.4: numeric identifiers compare by value and precede others; a release follows its pre-releases.
    identifiers = tuple(
        (0, int(each), "") if each.isdigit() else (1, 0, each) for each in (pre.split(".") if pre else ())
    )
    return major, minor, patch, 0 if pre else 1, identifiers


def _bounds(term: str, whole: str) -> list[_Bound]:
    """Return the bounds of one term such as ``^1.4``; an empty list if it permits every release."""
    found = _TERM.fullmatch(term)
    if found is None:
        raise ValueError(f"{term!r} in {whole!r} is not a version range")
    numbers: list[int] = []
    for part in (found["a"], found["b"], found["c"]):
        if part is None or part in "xX*":
            break
        numbers.append(int(part))
    complete = len(numbers) == 3  # noqa: PLR2004 - major, minor and patch
    symbol = found["op"]
    if (found["pre"] and not complete) or (not numbers and symbol in {"<", ">"}):
        raise ValueError(f"{term!r} in {whole!r} is not a version range")
    if not numbers:
        return []
    filled = [*numbers, 0, 0]
    low = _build_key(filled[0], filled[1], filled[2], found["pre"])
    if complete and symbol in {"", "=", "<", "<=", ">"}:
        return [(symbol or "=", low)]
    return _partial_bounds(symbol, numbers, low)


def _partial_bounds(symbol: str, numbers: list[int], low: _Key) -> list[_Bound]:
    """Return the bounds of a term that covers several versions; ``numbers`` are its 1 to 3 version numbers."""
    after_all = _next_version(numbers, len(numbers))
    match symbol:
        case "^":
            kept = next((count for count, number in enumerate(numbers, 1) if number), len(numbers))
            bounds = [*_lower_bound(low), ("<", _next_version(numbers, kept))]
        case "~" | "~>":
            bounds = [*_lower_bound(low), ("<", _next_version(numbers, min(len(numbers), 2)))]
        case "<":
            bounds = [("<", (*low[:3], 0, _LOWEST))]
        case "<=":
            bounds = [("<", after_all)]
        case ">":
            bounds = _lower_bound(_build_key(*after_all[:3]))
        case ">=":
            bounds = _lower_bound(low)
        case _:
            bounds = [*_lower_bound(low), ("<", after_all)]
    return bounds


def _lower_bound(low: _Key) -> list[_Bound]:
    # `>=0.0.0` excludes nothing, not even a pre-release of 0.0.0 that another term names.
    return [] if low == _build_key(0, 0, 0) else [(">=", low)]


def _next_version(numbers: list[int], kept: int) -> _Key:
    """Return the lowest version above all versions that begin with the first ``kept`` numbers."""
    raised = [*numbers[: kept - 1], numbers[kept - 1] + 1, 0, 0]
    return raised[0], raised[1], raised[2], 0, _LOWEST

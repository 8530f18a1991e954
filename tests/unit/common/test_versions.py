import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa_common.versions import MAX_FILTER_LENGTH, VersionFilter, parse_version_filter

# Results of node-semver 7, which defines the notation. Other libraries are wrong for pre-releases.
RANGES = [
    (">=1.2 <2", "1.2.0 1.9.9 v1.5 1.2", "1.1.9 2.0.0 2 1.5.0-rc.1 2.0.0-rc.1"),
    ("^1.4", "1.4.0 1.99.0 1.4", "1.3.9 2.0.0 1.4.0-rc.1 2.0.0-alpha"),
    ("^1.2.3", "1.2.3 1.2.4 1.3 1.2.3+build.7", "1.2.2 2.0.0"),
    ("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3.0 1.0.0"),
    ("^0.0.3", "0.0.3", "0.0.2 0.0.4 0.1.0"),
    ("^0.0", "0.0.0 0.0.9", "0.1.0"),
    ("^0", "0.0.0 0.9.9", "1.0.0"),
    ("^0.x", "0.5.0", "1.0.0"),
    ("~2.1", "2.1.0 2.1.9", "2.0.9 2.2.0"),
    ("~2", "2.0.0 2.9.0", "1.9.9 3.0.0"),
    ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
    ("~>1.2.3", "1.2.9", "1.3.0"),
    ("1.x", "1.0.0 1.9.0 1", "0.9.0 2.0.0"),
    ("1.2.X", "1.2.0 1.2.9", "1.3.0"),
    ("v1.x", "1.0.0", "2.0.0"),
    ("1.x.3", "1.0.0 1.9.9", "2.0.3"),
    ("*", "0.0.0 1.2.3 99.0.0", "1.0.0-rc.1"),
    ("^*", "1.2.3", "1.2.3-rc.1"),
    (">=*", "1.2.3", "1.2.3-rc.1"),
    ("<1 || >=3", "0.9.9 3.0.0 4.0.0", "1.0.0 2.9.9 1.0.0-rc.1"),
    ("<1||>=3", "0.9.9 3.0.0", "1.0.0"),
    ("1.2 - 2.3", "1.2.0 2.0.0 2.3.9", "1.1.9 2.4.0"),
    ("1.2.3 - 2", "1.2.3 2.9.9", "1.2.2 3.0.0"),
    ("1.2.3 - 2.3.4", "1.2.3 2.3.4", "2.3.5"),
    ("=1.2.3", "1.2.3 v1.2.3 1.2.3+linux", "1.2.4 1.2.3-rc.1"),
    ("=1.2", "1.2.0 1.2.9", "1.3.0"),
    (">1", "2.0.0", "1.0.0 1.9.9"),
    (">1.2", "1.3.0", "1.2.9"),
    ("<=1", "1.9.9 0.1.0", "2.0.0"),
    ("<=1.2", "1.2.9", "1.3.0"),
    ("<1.2", "1.1.9", "1.2.0"),
    (">1.2.3", "1.2.4", "1.2.3"),
    ("<=1.2.3", "1.2.3", "1.2.4"),
    (">= 1.2  < 2", "1.2.0", "2.0.0"),
    (">=v1.2", "1.2.0", "1.1.0"),
    (">=1.2.3-rc.1", "1.2.3-rc.1 1.2.3-rc.2 1.2.3-rc.10 1.2.3 1.3.0", "1.2.3-beta 1.2.4-rc.2"),
    (">=1.2.3-rc.1 <1.2.3", "1.2.3-rc.1 1.2.3-rc.2", "1.2.3 1.2.2"),
    ("<2.0.0-rc.1", "2.0.0-beta 2.0.0-rc.0 1.9.9", "2.0.0-rc.1 2.0.0-rc.2 2.0.0 1.9.9-rc.1"),
    ("=1.2.3-rc.1", "1.2.3-rc.1", "1.2.3 1.2.3-rc.2"),
    ("~1.2.0-rc.1", "1.2.0-rc.1 1.2.0-rc.2 1.2.0 1.2.9", "1.2.0-alpha 1.3.0 1.2.1-rc.1"),
    ("^1.2.3-beta.2", "1.2.3-beta.2 1.2.3-beta.4 1.2.3 1.9.0", "1.2.3-beta.1 1.2.4-beta.2 2.0.0-alpha"),
    (">=1.0.0-rc.1 <2.0.0-rc.1", "1.0.0-rc.2 1.5.0 2.0.0-beta", "2.0.0 1.5.0-rc.1"),
    (">=0.0.0 <=0.0.0-rc.2", "0.0.0-rc.1", "0.0.0"),
    (">=1.0.0-2", "1.0.0-2 1.0.0-10 1.0.0-alpha", "1.0.0-1"),
]


@pytest.mark.parametrize(("text", "inside", "outside"), RANGES, ids=[text for text, _, _ in RANGES])
def test_range_matches_the_same_versions_as_npm(text: str, inside: str, outside: str) -> None:
    version_filter = parse_version_filter(text)
    assert version_filter.exact is None
    assert [version for version in inside.split() if not version_filter.matches(version)] == []
    assert [version for version in outside.split() if version_filter.matches(version)] == []


@pytest.mark.parametrize(
    "text", ["1", "1.2", "1.2.3", "v1.2.3", "1.2.3-rc.1", "2026-11", "linux.x", "latest", "x", "1.2.3-x.1"]
)
def test_text_without_range_characters_matches_exactly(text: str) -> None:
    version_filter = parse_version_filter(text)
    assert version_filter.exact == text
    assert version_filter.matches(text)
    assert not version_filter.matches(f"v{text}")
    assert not version_filter.matches(f"{text}.0")


@pytest.mark.parametrize(
    "version", ["", "latest", "1.2.3.4", "01.2.3", "1.2.3-01", "1.2.3-", "1.2.3-a..b", "1.x", "\uff11.2.3", "1.2.3\n"]
)
def test_version_that_is_not_semver_is_in_no_range(version: str) -> None:
    assert not parse_version_filter(">=0 || *").matches(version)


def test_version_equal_to_the_text_of_a_range_matches() -> None:
    assert parse_version_filter("1.x").matches("1.x")
    assert parse_version_filter(">=1 <2").matches(">=1 <2")


@pytest.mark.parametrize(
    "text",
    [
        "release 5",
        "1.0 (build 7)",
        "==1.0",
        "1.0*",
        "~nightly",
        "2026.11.30 14:05",
        "версия 1",
        " 1.0",
        "1.0 ",
        " ",
        ">=",
        ">=1.2,<2",
        "> =1",
        "!=1.2 *",
        "^01.2",
        "^1.2.3.4",
        "a - b",
        ">=1 - 2",
        "1 - 2 - 3",
        ">=1.2.3-a..b",
        ">=1.2-rc",
        "~1.2.x-rc",
        "<*",
        ">x",
        "1 || two",
    ],
)
def test_text_that_is_no_range_matches_only_the_equal_version(text: str) -> None:
    version_filter = parse_version_filter(text)
    assert version_filter.exact == text
    assert version_filter.matches(text)
    assert not any(map(version_filter.matches, ("1", "1.0", "1.2.3", "1.2.0-rc", "2", "5", f"{text}.", text + " 0")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [(">=1\t<2", "control"), ("1.2.3\x00", "control"), ("1" * (MAX_FILTER_LENGTH + 1), "at most 128")],
)
def test_filter_that_no_version_can_equal_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_version_filter(text)


def test_very_long_version_is_not_parsed() -> None:
    assert not parse_version_filter("*").matches("1." * 100_000)
    assert not parse_version_filter("*").matches("9" * 5_000)


def test_longest_numbers_are_compared() -> None:
    assert parse_version_filter(">=1").matches("9" * MAX_FILTER_LENGTH)


@given(st.text(max_size=40) | st.text("0123456789.xX*v<>=^~|-+ ab", max_size=40), st.text(max_size=20))
def test_every_printable_text_matches_itself(text: str, version: str) -> None:
    if not text.isprintable():
        with pytest.raises(ValueError, match="unprintable"):
            parse_version_filter(text)
        return
    version_filter = parse_version_filter(text)
    assert version_filter.matches(version) in {True, False}
    assert version_filter.matches(text)


numbers = st.integers(0, 12)
triples = st.tuples(numbers, numbers, numbers)


def text_of(triple: tuple[int, int, int]) -> str:
    return ".".join(map(str, triple))


@given(triples, triples, triples)
def test_releases_are_ordered_by_their_numbers(
    version: tuple[int, int, int], low: tuple[int, int, int], high: tuple[int, int, int]
) -> None:
    def matches(text: str) -> bool:
        return parse_version_filter(text).matches(text_of(version))

    assert matches(f">={text_of(low)} <{text_of(high)}") == (low <= version < high)
    assert matches(f"{text_of(low)} - {text_of(high)}") == (low <= version <= high)
    assert matches(f"<{text_of(low)} || >{text_of(high)}") == (version < low or version > high)
    assert matches(f"~{text_of(low)}") == (version[:2] == low[:2] and version >= low)


def test_filters_with_equal_text_are_equal() -> None:
    assert parse_version_filter("^1.2") == parse_version_filter("^1.2")
    assert isinstance(parse_version_filter("^1.2"), VersionFilter)
    assert hash(parse_version_filter("1.2")) == hash(parse_version_filter("1.2"))

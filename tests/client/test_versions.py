"""Version ranges of the client match the same versions as those of the registry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_client.versions import matcher
from registry_server.model.versions import parse_version_filter

number = st.integers(0, 3).map(str)
pre = st.sampled_from(["", "", "", "-rc.1", "-rc.2", "-0", "-alpha", "+build", "-rc.1+build"])
version = st.one_of(
    st.builds("{}.{}.{}{}".format, number, number, number, pre),
    st.builds("v{}.{}".format, number, number),
    st.sampled_from(["1", "latest", "", "1.2.3.4", "01.2.3"]),
)
part = st.one_of(number, st.sampled_from(["x", "*", "X"]))
partial = st.one_of(
    st.builds("{}.{}.{}{}".format, number, number, number, pre),
    st.builds("{}.{}".format, number, part),
    st.builds("{}.{}.{}".format, number, part, part),
    part,
)
operator = st.sampled_from(["", "<", "<=", ">", ">=", "=", "^", "~", "~>", ">= ", "^ "])
term = st.builds("{}{}".format, operator, partial)
text = st.lists(st.lists(term, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3).map(" || ".join)


@given(text, st.lists(version, min_size=1, max_size=8))
def test_range_matches_the_same_versions_as_in_the_registry(text: str, versions: list[str]) -> None:
    try:
        server_filter = parse_version_filter(text)
    except ValueError:
        with pytest.raises(ValueError, match="range"):
            matcher(text)
        return
    client_matches = matcher(text)
    assert {each: client_matches(each) for each in versions} == {each: server_filter.matches(each) for each in versions}


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3"], ["1.2.4", "v1.2.3"]),
        ("latest", ["latest"], ["1.0.0"]),
        ("^1.4", ["1.4.0", "1.9.9", "1.4"], ["2.0.0", "1.3.9", "2.0.0-rc.1"]),
        ("~2.1", ["2.1.0", "2.1.7"], ["2.2.0"]),
        (">=1.2 <2", ["1.2.0", "1.99.0"], ["2.0.0", "1.1.9"]),
        ("1.x || >=3", ["1.0.0", "3.1.0"], ["2.0.0"]),
        ("^1.0.0-rc.1", ["1.0.0-rc.2", "1.0.0"], ["1.1.0-rc.1"]),
    ],
)
def test_examples_of_ranges(text: str, inside: list[str], outside: list[str]) -> None:
    assert [each for each in inside if not matcher(text)(each)] == []
    assert [each for each in outside if matcher(text)(each)] == []


@pytest.mark.parametrize("text", ["1.2 - 2.3", "^", ">x", "^1.2-rc.1", "a b", "1" * 129])
def test_unsupported_range_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        matcher(text)

"""Name patterns with ``*``."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.security.patterns import matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("fleet-*", "fleet-1", True),
        ("fleet-*", "fleet-", True),
        ("fleet-*", "a-fleet-1", False),
        ("*", "anything", True),
        ("a.b", "axb", False),
        ("a*c*e", "abcde", True),
        ("a**e", "abcde", True),
        ("Fleet-*", "fleet-1", False),
        ("a", "a\n", False),
    ],
)
def test_pattern_matches_the_whole_name(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(pattern, name) is expected


@given(st.text("ab*", max_size=8), st.text("ab\n", max_size=10))
def test_pattern_matches_like_its_regular_expression(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, name) is (re.fullmatch(expression, name, re.DOTALL) is not None)


def test_time_does_not_grow_exponentially_with_the_wildcards() -> None:
    began = time.thread_time()
    for wildcards in (1, 5, 20, 60):
        assert not matches("*-" * wildcards + "x*y", "-" * 128)
    assert time.thread_time() - began < 0.1

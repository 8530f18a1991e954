"""Name patterns with ``*``."""

import pytest

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

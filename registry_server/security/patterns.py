"""Name patterns, in which ``*`` matches any text."""

import re
from functools import lru_cache


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches the whole text."""
    return _compiled(pattern).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", pattern))), re.DOTALL)

"""Patterns of names: text in which ``*`` stands for any text."""

import re
from functools import lru_cache


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern matches the whole of a text."""
    return _compiled(pattern).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(r"\*+", pattern))), re.DOTALL)

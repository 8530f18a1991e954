"""Name patterns, in which ``*`` matches any text."""

from functools import lru_cache


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches the whole text.

    The time is linear in the number of ``*``: each part between two of them is matched at its first occurrence. A
    regular expression would try all occurrences, and a caller chooses the text.
    """
    first, middle, last = _parts(pattern)
    if last is None:
        return text == first
    end = len(text) - len(last)
    position = len(first)
    if position > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        position = text.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


@lru_cache(maxsize=4096)
def _parts(pattern: str) -> tuple[str, list[str], str | None]:
    """Return the texts before, between and after the ``*``; the last is ``None`` if there is none."""
    first, *rest = pattern.split("*")
    return (first, rest[:-1], rest[-1]) if rest else (first, [], None)

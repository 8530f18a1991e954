"""Name patterns, in which ``*`` matches any text."""


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches the whole text.

    The time is linear in the number of ``*``: each part between two of them is matched at its first occurrence. A
    regular expression would try all occurrences, and a caller chooses the text.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    last = rest.pop()
    end = len(text) - len(last)
    position = len(first)
    if position > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in rest:
        position = text.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True

"""Escaping of untrusted text for terminals."""

import re
import unicodedata
from typing import Final

_DOUBLE_WIDTH_CLASSES: Final = ("W", "F")
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


def escape(text: str) -> str:
    """Replace unprintable characters by escape sequences.

    Every client that may register chooses names, errors and descriptions. Unescaped, these could move the cursor, set
    the window title or, with bidirectional control characters, display text that differs from their content.
    """
    return text if text.isprintable() else "".join(map(_escape_character, text))


def escape_json(text: str) -> str:
    """Escape a JSON document with JSON escapes, so that its content is unchanged; line breaks between tokens remain."""
    return text if text.isprintable() else re.sub(r"[^\n]", lambda match: _escape_json_character(match[0]), text)


def column_width(text: str) -> int:
    """Return the number of terminal columns that an escaped text occupies."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def cut(text: str, columns: int) -> str:
    """Return an escaped text that occupies at most so many columns; an ellipsis replaces what is cut."""
    if column_width(text) <= columns:
        return text
    width = 0
    for end, character in enumerate(text):
        width += _character_width(character)
        if width >= columns:
            return text[:end] + _ELLIPSIS if columns > 0 else ""
    return text


def _escape_character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _escape_json_character(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in _DOUBLE_WIDTH_CLASSES else 1

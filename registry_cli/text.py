"""Text that may come from strangers, made fit for a terminal."""

import re
import unicodedata
from typing import Final

_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_LAST_OF_LATIN_1: Final = 0xFF
_LAST_OF_FIRST_PLANE: Final = 0xFFFF
_OF_TWO_COLUMNS: Final = ("W", "F")


def plain(text: str) -> str:
    """The text with escapes in the place of what is not printed as itself.

    Whoever may register chooses names, errors and descriptions. Raw, they could move the cursor, set the title of the
    window or, with marks that change the direction of writing, show something else than they say.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def plain_json(text: str) -> str:
    """The same for a JSON document: its own line breaks stay, and what is escaped reads back as what it was."""
    return text if text.isprintable() else re.sub(r"[^\n]", lambda match: _json_escaped(match[0]), text)


def width(text: str) -> int:
    """Columns of a terminal that a plain text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if short := _SHORT.get(character):
        return short
    if code <= _LAST_OF_LATIN_1:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= _LAST_OF_FIRST_PLANE else f"\\U{code:08x}"


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in _OF_TWO_COLUMNS else 1

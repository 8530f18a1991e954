"""The words of texts and queries, in the form in which search compares them."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import Stemmer

MIN_FUZZY_LETTERS: Final = 4
"""In shorter words, one other letter usually makes another word."""
_MAX_CACHED_STEMS: Final = 32_768
_MAX_WORD_LETTERS: Final = 48
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD: Final = re.compile(r"[^\W_]+")
_BRITISH: Final = ((re.compile(r"is(e[sdr]?|ing|ation|ations)$"), r"iz\1"), (re.compile(r"(?<=..)our"), "or"))
"""British spellings, and American ones of the same words: summarise and summarize, colour and color."""
_MIN_BRITISH_LETTERS: Final = 6
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_STOP_WORDS: Final = frozenset(
    _WORD.findall(
        "a an and any are as at be by can do does for from get has have how i in into is it its me my of on or our s "
        "so t that the their them this to us use used using was we what when where which who will with you your"
    )
)
_stemmer: Final = Stemmer.Stemmer("english", 0)


def raw_words(text: str) -> list[str]:
    """Return the words of a text, in lower case and without accents; "the" and "of" only if there are no others."""
    if not text.isascii():
        text = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    words = [word[:_MAX_WORD_LETTERS] for word in _WORD.findall(_CAMEL.sub(" ", text).casefold())]
    return [word for word in words if word not in _STOP_WORDS] or words


def stem(word: str) -> str:
    """Return the part that all inflections and spellings of a word have in common."""
    if len(word) >= _MIN_BRITISH_LETTERS:
        for british, american in _BRITISH:
            word = british.sub(american, word)
    stemmed: str = _stemmer.stemWord(word)
    return stemmed


@lru_cache(_MAX_CACHED_STEMS)
def cached_stem(word: str) -> str:
    """Return the stem of a word of a service; services share most of their words."""
    return stem(word)


def misspellings(word: str) -> Iterator[str]:
    """Yield the texts that differ from a word by one letter: added, removed, replaced or swapped with the next."""
    parts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    for left, right in parts:
        if right:
            yield left + right[1:]
        if len(right) > 1:
            yield left + right[1] + right[0] + right[2:]
        for letter in _LETTERS:
            if right:
                yield left + letter + right[1:]
            yield left + letter + right

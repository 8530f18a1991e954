"""``resembling``: the texts that a person who mistyped one of them may have meant."""

import heapq
from collections.abc import Generator, Sequence
from difflib import SequenceMatcher
from os.path import commonprefix
from typing import Final

_STEP_PARTS: Final = 8_000
"""Look-ups of a part in a text: about 1 ms."""
_MAX_LETTERS: Final = 128
"""Length of a name. Of longer texts only the beginning is compared: the time grows with the square."""
_MAX_COMPARED: Final = 200
"""Texts with the most pairs of letters in common that are compared in full, which takes up to 5 ms each."""
_MAX_SHORT: Final = 5
_MIN_SHARED_LETTERS: Final = 0.6
"""Share of a short wanted text's letters that a text must contain."""
_MIN_SHARED_PAIRS: Final = 0.3
"""Share of a longer one's pairs of letters: one wrong letter changes two of them."""
_MIN_RATIO: Final = 0.6
"""As ``difflib.get_close_matches``."""


def resembling(wanted: str, texts: Sequence[str], limit: int) -> Generator[None, None, list[str]]:
    """Return up to ``limit`` of the texts that resemble ``wanted``, the most similar first; yield in between."""
    folded = wanted.casefold()[:_MAX_LETTERS]
    # Two letters of a short word that changed places leave no pair.
    length, share = (1, _MIN_SHARED_LETTERS) if len(folded) <= _MAX_SHORT else (2, _MIN_SHARED_PAIRS)
    parts = {folded[i : i + length] for i in range(max(len(folded) - length + 1, 1))}
    least = len(parts) * share
    shared: list[tuple[int, int, str]] = []
    step = max(1, _STEP_PARTS // (4 + len(parts)))
    for start in range(0, len(texts), step):
        for text in texts[start : start + step]:
            lower = text.casefold()[:_MAX_LETTERS]
            count = sum(part in lower for part in parts)
            if count >= least:
                prefix = len(commonprefix((folded, lower)))  # noqa: RUF071 - of characters, not of paths
                shared.append((count, prefix, text))
        if len(shared) > 2 * _MAX_COMPARED:
            shared = heapq.nlargest(_MAX_COMPARED, shared)
        yield
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(folded)
    ranked: list[tuple[float, str]] = []
    for _, _, text in heapq.nlargest(_MAX_COMPARED, shared):
        lower = text.casefold()[:_MAX_LETTERS]
        matcher.set_seq1(lower)
        # A part of a name is often all that is remembered of it.
        ratio = max(matcher.ratio(), 0.9 if len(folded) > 2 and (folded in lower or lower in folded) else 0)  # noqa: PLR2004
        if ratio >= _MIN_RATIO:
            ranked.append((-ratio, text))
        yield
    return [text for _, text in sorted(ranked)[:limit]]

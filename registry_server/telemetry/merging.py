"""Merging the metrics of several processes that share a port."""

from collections.abc import Iterable

_HELP = "# HELP "
_COMMENT = "#"


def merge_metrics(texts: Iterable[str]) -> bytes:
    """Return the samples of all texts, with each metric family declared once.

    Samples are not added up: a replaced worker starts at zero, and such a reset must appear only in its own series.
    Samples are not parsed either, because that would block the event loop for tens of milliseconds.

    Args:
        texts: Metrics of each process in the text format 0.0.4. A label distinguishes the samples of the processes.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        head: list[str] = []
        family_samples: list[str] = []
        for line in text.splitlines():
            if line.startswith(_HELP):
                family = line.removeprefix(_HELP).partition(" ")[0]
                head = heads[family] = []
                family_samples = samples.setdefault(family, [])
            (head if line.startswith(_COMMENT) else family_samples).append(line)
    lines = [line for family, head in heads.items() for line in (*head, *samples[family])]
    return "".join(f"{line}\n" for line in lines).encode()

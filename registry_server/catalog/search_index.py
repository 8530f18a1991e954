"""``SearchIndex``: the words of all services, with how much they say about each."""

from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ossa.registry.v1.service_pb2 import Capability, HealthStatus, Service
from registry_server.catalog.sorted_names import SortedNames
from registry_server.catalog.words import cached_stem, raw_words
from registry_server.model.record import Record

MAX_WORDS: Final = 1_000
"""Words of one service that are indexed, those of the most important fields first: a step takes about 1 ms."""
MAX_WEIGHT: Final = 255
_WEIGHT_BITS: Final = 8
_TITLE, _TAG, _DESCRIPTION, _DETAIL = 3.0, 2.0, 1.5, 1.0
_SATURATION: Final = 2.0
"""``k1`` of BM25: the field weights at which a word has half of the maximum."""
_LENGTH_SHARE: Final = 0.3
"""``b`` of BM25."""
_USUAL_WORDS: Final = 40
"""A constant instead of the average, which would depend on services that the caller does not see."""

Integers = NDArray[np.uint32]


class Posting:
    """The services that have one word: slot and weight of each, in one integer, ordered by slot."""

    __slots__ = ("entries", "word")

    def __init__(self, word: str) -> None:
        self.word = word
        self.entries = array("I")

    def read(self) -> tuple[Integers, Integers]:
        """Return the slots and their weights."""
        entries = np.frombuffer(self.entries, np.uint32)
        return entries >> np.uint32(_WEIGHT_BITS), entries & np.uint32(MAX_WEIGHT)


class SearchIndex:
    """An inverted index from words to the slots of services. A service keeps its slot until it is removed."""

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        """Service name to slot."""
        self.names: list[str] = []
        """Name of the service in each slot; empty if there is none."""
        self.available = bytearray()
        """For each slot, whether the service is available."""
        self.postings: dict[str, Posting] = {}
        self.vocabulary = SortedNames()
        self.generation = 0
        """Incremented when a service is added or removed."""
        self._words: list[tuple[Posting, ...]] = []  # by slot
        self._free: list[int] = []

    def put_record(self, record: Record) -> None:
        """Add a service, or replace its words."""
        weights = _weigh_words(record.message())
        slot = self.slots.get(record.name)
        if slot is None:
            slot = self._add_slot(record.name)
        else:
            self._remove_words(slot)
        self.available[slot] = is_available(record)
        words = []
        for word, weight in weights.items():
            posting = self.postings.get(word)
            if posting is None:
                posting = self.postings[word] = Posting(word)
                self.vocabulary.add(word)
            entries, entry = posting.entries, slot << _WEIGHT_BITS | weight
            if not entries or entries[-1] < entry:
                entries.append(entry)
            else:
                insort(entries, entry)
            words.append(posting)
        self._words[slot] = tuple(words)

    def remove(self, name: str) -> None:
        """Remove a service, if it is in the index."""
        slot = self.slots.pop(name, None)
        if slot is not None:
            self._remove_words(slot)
            self.names[slot], self._words[slot], self.available[slot] = "", (), 0
            self._free.append(slot)
            self.generation += 1

    def words_with_prefix(self, prefix: str) -> Iterator[Posting]:
        """Yield the words that begin with a text and are longer, in order."""
        after = prefix
        while words := self.vocabulary.after(after, 32):
            for word in words:
                if not word.startswith(prefix):
                    return
                yield self.postings[word]
            after = words[-1]

    def _add_slot(self, name: str) -> int:
        if self._free:
            slot = self._free.pop()
            self.names[slot] = name
        else:
            slot = len(self.names)
            self.names.append(name)
            self._words.append(())
            self.available.append(0)
        self.slots[name] = slot
        self.generation += 1
        return slot

    def _remove_words(self, slot: int) -> None:
        for posting in self._words[slot]:
            entries = posting.entries
            del entries[bisect_left(entries, slot << _WEIGHT_BITS)]
            if not entries:
                del self.postings[posting.word]
                self.vocabulary.remove(posting.word)


def is_available(record: Record) -> bool:
    """Return whether a service is healthy and not draining."""
    return record.status == HealthStatus.HEALTH_STATUS_HEALTHY and not record.draining


def capability_texts(capability: Capability) -> Iterator[tuple[float, str]]:
    """Yield the texts of a capability, with their weights."""
    yield _TITLE, capability.name
    yield _DETAIL, capability.description


def _texts(service: Service) -> Iterator[tuple[float, str]]:
    yield _TITLE, service.name
    for tag in service.metadata.tags:
        yield _TAG, tag
    yield _DESCRIPTION, service.metadata.description
    for capability in service.capabilities:
        yield from capability_texts(capability)


def _weigh_words(service: Service) -> dict[str, int]:
    """Return the words of a service with their weights, 1 to ``MAX_WEIGHT``: term frequency, as in BM25F."""
    totals: defaultdict[str, float] = defaultdict(float)
    count = 0
    for weight, text in _texts(service):
        if text:
            words = raw_words(text[: MAX_WORDS * 8])[: MAX_WORDS - count]
            for word in words:
                totals[cached_stem(word)] += weight
            count += len(words)
            if count >= MAX_WORDS:
                break
    half = _SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * count / _USUAL_WORDS)
    return {word: max(1, int(MAX_WEIGHT * total / (total + half))) for word, total in totals.items()}

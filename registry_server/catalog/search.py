"""``Search``: finds the services whose words match a text, and orders them by relevance."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import log1p
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import Load
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import MAX_PAGE_BYTES, Discovery
from registry_server.catalog.loads import Loads
from registry_server.catalog.query import Query
from registry_server.catalog.replica import Replica
from registry_server.catalog.search_index import (
    MAX_WEIGHT,
    Integers,
    Posting,
    SearchIndex,
    capability_texts,
    is_available,
)
from registry_server.catalog.words import MIN_FUZZY_LETTERS, cached_stem, misspellings, raw_words, stem
from registry_server.model.filters import EVERYTHING, Filter
from registry_server.model.record import Record

MAX_QUERY_WORDS: Final = 16
FILL_SECONDS: Final = 5.0
"""How long a search waits for the index to hold all services; 100,000 take about that long."""
_MAX_MASKS: Final = 16
_MIN_PREFIX_LETTERS: Final = 3
_MAX_PREFIX_WORDS: Final = 24
_MAX_WALKED_WORDS: Final = 2_000
_PREFIX_WEIGHT, _FUZZY_WEIGHT = 0.7, 0.8
_MIN_SHARE_OF_BEST: Final = 0.25
"""Services with less than this share of the best relevance do not match: an available service that has only a common
word of the query would come before all that are unavailable."""
_MAX_RELEVANCE: Final = 100
_AVAILABLE: Final = 2 * _MAX_RELEVANCE
"""Added to the relevance of available services in the order."""
_STEP_NAMES: Final = 2_000
_STEP_STEMS: Final = 200
"""About 1 ms."""

Mask = NDArray[np.bool_]


class Hit(NamedTuple):
    """A service that matches a text."""

    record: Record
    score: int
    """Relevance, 0 to 100."""
    capabilities: list[str]
    """Names of the capabilities that match."""
    load: Load | None
    """Newest load that the service has reported."""


@dataclass(slots=True)
class Hits:
    """The answer to a search."""

    hits: list[Hit] = field(default_factory=list)
    total: int = 0
    revision: int = 0
    stale: bool = False
    """Whether the answer may be behind the store, or the index did not have all services."""


class Search:
    """Finds services by text.

    The index is filled by the first search, and each search first applies the changes of texts since the one before:
    a process that no client searches pays only for a list of changed names.
    """

    def __init__(
        self, replica: Replica, discovery: Discovery, loads: Loads, *, fill_seconds: float = FILL_SECONDS
    ) -> None:
        self._replica = replica
        self._discovery = discovery
        self._loads = loads
        self._fill_seconds = fill_seconds
        self._index = SearchIndex()
        self._started = False
        self._changed: dict[str, None] = {}  # names whose words in the index are outdated
        self._masks: OrderedDict[bytes, tuple[Query, int, int, Mask]] = OrderedDict()

    @property
    def pending(self) -> int:
        """Number of services whose words are not in the index yet."""
        return len(self._changed)

    async def find(self, text: str, filter_: Filter, limit: int) -> Hits:
        """Return the best matches of a text: available ones first, then by relevance, load and name.

        Args:
            text: Words to find.
            filter_: Conditions that the services must meet.
            limit: Maximum number of hits.
        """
        if not self._started:
            self._started = True
            self._changed = dict.fromkeys(self._replica.records)
            self._replica.on_applied.append(self._note_change)
        while True:
            query = None if filter_.key == EVERYTHING.key else await self._discovery.find_query(filter_)
            found = Hits()
            await self._discovery.slices.run(self._search(text, filter_, query, limit, found))
            if query is None or not query.ended:
                return found

    def _note_change(self, change: Change) -> None:
        if change.is_notice:
            return
        name, after = change.name, change.after
        slot = self._index.slots.get(name)
        if after is None and slot is None:
            self._changed.pop(name, None)
            return
        if after is not None and slot is not None:
            self._index.available[slot] = is_available(after)
            if change.type == EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED:
                return
        self._changed[name] = None

    def _search(self, text: str, filter_: Filter, query: Query | None, limit: int, found: Hits) -> Iterator[None]:
        # Another call may end the query in between, which releases its filter.
        yield  # calls that arrive in one turn take one step each, and the next ones take up to 1 ms
        yield from self._apply_changes()
        incomplete = bool(self._changed)
        mask = None if query is None else (yield from self._mask(query, filter_.key))
        ranked, words = yield from self._rank(text, mask, limit, found)
        best: list[tuple[int, float, str]] = []
        for start in range(0, len(ranked), _STEP_NAMES):
            best = heapq.nsmallest(limit, best + list(map(self._with_load, ranked[start : start + _STEP_NAMES])))
            yield
        size = 0
        for order, _, name in best:
            record = self._replica.records.get(name)
            # It may have changed since the first step.
            if record is not None and (query is None or filter_.matches(record)):
                size += len(record.framed)
                if size > MAX_PAGE_BYTES and found.hits:
                    break
                capabilities = _matched_capabilities(record, words)
                found.hits.append(Hit(record, -order % _AVAILABLE, capabilities, self._loads.find(record)))
                yield
        found.revision, found.stale = self._replica.revision, incomplete or self._discovery.stale

    def _with_load(self, ranked: tuple[int, str]) -> tuple[int, float, str]:
        """Return order, load and name of a service."""
        order, name = ranked
        record = self._replica.records.get(name)
        return order, self._loads.share(record) if record else 0.0, name

    def _apply_changes(self) -> Iterator[None]:
        deadline = time.monotonic() + self._fill_seconds
        while self._changed and time.monotonic() < deadline:
            name, _ = self._changed.popitem()
            record = self._replica.records.get(name)
            if record is None:
                self._index.remove(name)
            else:
                self._index.put_record(record)
            yield

    def _mask(self, query: Query, key: bytes) -> Generator[None, None, Mask]:
        """Return for each slot whether its service is one of a query; kept until the query or the slots change."""
        index = self._index
        kept = self._masks.get(key)
        if kept is not None and kept[0] is query and kept[1:3] == (query.version, index.generation):
            self._masks.move_to_end(key)
            return kept[3]
        version, generation, names = query.version, index.generation, list(query.names)
        mask = np.zeros(len(index.names), np.bool_)
        for start in range(0, len(names), _STEP_NAMES):
            slots = [slot for name in names[start : start + _STEP_NAMES] if (slot := index.slots.get(name)) is not None]
            mask[[slot for slot in slots if slot < len(mask)]] = True
            yield
        self._masks[key] = (query, version, generation, mask)
        if len(self._masks) > _MAX_MASKS:
            self._masks.popitem(last=False)
        return mask

    def _rank(
        self, text: str, mask: Mask | None, limit: int, found: Hits
    ) -> Generator[None, None, tuple[list[tuple[int, str]], set[str]]]:
        """Return order and name of the best services, with all that equal the last of them, and the words found.

        The frequency of a word is that among the services of ``mask``: answers do not depend on hidden services.
        Other searches may change the index between two steps, which can only affect the relevance of what they change.
        """
        index = self._index
        scores = np.zeros(len(index.names) if mask is None else len(mask), np.float32)
        size = len(index.slots) if mask is None else int(np.count_nonzero(mask))
        words, best_possible = set[str](), 0.0
        raw = list(dict.fromkeys(raw_words(text)))[:MAX_QUERY_WORDS]
        for word in raw:
            weighted = np.zeros_like(scores)
            alternatives = yield from self._alternatives(word, mask, is_last=word == raw[-1])
            for posting, weight in alternatives:
                slots, weights = _visible(posting, mask, len(scores))
                weighted[slots] = np.maximum(weighted[slots], weights * np.float32(weight))
                words.add(posting.word)
                yield
            count = int(np.count_nonzero(weighted))
            rarity = log1p((max(0, size - count) + 0.5) / (count + 0.5))
            best_possible += rarity * MAX_WEIGHT
            scores += weighted * np.float32(rarity)
            yield
        yield
        ranked = np.flatnonzero(scores)
        if not len(ranked):
            return [], words
        relevant = scores[ranked]
        ranked = ranked[relevant >= _MIN_SHARE_OF_BEST * relevant.max()]
        found.total = len(ranked)
        order = np.maximum(1, np.rint(scores[ranked] * (_MAX_RELEVANCE / best_possible))).astype(np.int32)
        order += np.frombuffer(index.available, np.uint8)[ranked] * np.int32(_AVAILABLE)
        if len(ranked) > limit:
            last = np.partition(order, len(order) - limit)[len(order) - limit]
            ranked, order = ranked[order >= last], order[order >= last]
        return list(zip((-order).tolist(), map(index.names.__getitem__, ranked.tolist()), strict=True)), words

    def _alternatives(
        self, word: str, mask: Mask | None, *, is_last: bool
    ) -> Generator[None, None, list[tuple[Posting, float]]]:
        """Return the words of the index that a word of a query stands for, with their weights."""
        postings, stemmed = self._index.postings, stem(word)

        def is_visible(posting: Posting | None) -> bool:
            return posting is not None and (mask is None or len(_visible(posting, mask, len(mask))[0]) > 0)

        found = [(postings[stemmed], 1.0)] if is_visible(postings.get(stemmed)) else []
        if len(stemmed) >= _MIN_PREFIX_LETTERS and (is_last or not found):
            # A list: other searches may change the index in between.
            longer = list(islice(self._index.words_with_prefix(stemmed), _MAX_WALKED_WORDS))
            limit = len(found) + _MAX_PREFIX_WORDS
            for posting in longer:
                if is_visible(posting):
                    found.append((posting, _PREFIX_WEIGHT))
                    if len(found) == limit:
                        break
                yield
        if not found and len(word) >= MIN_FUZZY_LETTERS:
            for posting in (yield from self._similar(word, stemmed)):
                if is_visible(posting):
                    found.append((posting, _FUZZY_WEIGHT))
                yield
        return found

    def _similar(self, word: str, stemmed: str) -> Generator[None, None, list[Posting]]:
        """Return the words of the index that differ from a word by one letter."""
        texts, postings = set(misspellings(stemmed)), self._index.postings
        for i, text in enumerate(misspellings(word)):
            if i % _STEP_STEMS == 0:
                yield
            texts.add(stem(text))
        return [postings[each] for each in texts & postings.keys()]


def _visible(posting: Posting, mask: Mask | None, count: int) -> tuple[Integers, Integers]:
    """Return the slots below ``count`` of the services that have a word and are visible, and their weights."""
    slots, weights = posting.read()
    end = np.searchsorted(slots, count)
    slots, weights = slots[:end], weights[:end]
    if mask is not None:
        kept = mask[slots]
        slots, weights = slots[kept], weights[kept]
    return slots, weights


def _matched_capabilities(record: Record, words: set[str]) -> list[str]:
    """Return the names of the capabilities that have one of the words."""
    matched = dict.fromkeys(
        capability.name
        for capability in record.message().capabilities
        if any(cached_stem(word) in words for _, text in capability_texts(capability) for word in raw_words(text))
    )
    return list(matched)

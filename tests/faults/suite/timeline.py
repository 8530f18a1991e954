"""``Timeline``: the order of changes that watchers were told, and the state at each position."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.suite.history import GONE, REGISTERED, RESYNC, SNAPSHOT, History, Message, Position, States, Told


class Violation(NamedTuple):
    """A promise that was not kept."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


class Span(NamedTuple):
    """How a name was from one revision until before another."""

    version: str
    """Empty: it was not registered."""
    of: int
    """Revision of the service; of the removal if it was not registered."""
    until: float
    """Revision of the next change; infinite if there was none."""
    change: Told | None
    """What began it; ``None`` for the beginning, when nothing is registered."""


class Walk:
    """Goes along what one watcher was told, holds its state, and says where its history is broken."""

    def __init__(self, watcher: str) -> None:
        self.watcher = watcher
        self.position: Position | None = None
        self.state: States = {}
        self.digest = 0
        """Of the state; kept with it, since a state is looked at after every change."""
        self._snapshot: States = {}
        self._within_snapshot = False

    def take(self, message: Message) -> Iterator[Position | Violation]:
        """Takes the next message; gives each position that the state was brought to, and what is wrong."""
        if message.fresh:
            self._snapshot, self._within_snapshot = {}, True
        if self._within_snapshot:
            yield from self._take_snapshot(message)
            return
        assert self.position is not None, "a watch goes on from a cursor only after a snapshot"
        changes = [event for event in message.events if event.reason != RESYNC]
        if differences := [event for event in message.events if event.reason == RESYNC]:
            for event in differences:
                yield from self._apply(event)
            self.position = (message.epoch, differences[-1].revision)
            yield self.position
        for event in changes:
            epoch, last = self.position
            if message.epoch != epoch:
                yield self._broken(f"was told {event} in epoch {message.epoch} after epoch {epoch} without a word")
            elif event.revision != last + 1:
                word = "a hole" if event.revision > last else "a repetition"
                yield self._broken(f"was told {word}: revision {event.revision} ({event}) after {last}")
            self.position = (message.epoch, event.revision)
            yield from self._apply(event)
            yield self.position
        if self.position != (message.epoch, message.revision):
            if not message.events or message.revision != self.position[1]:
                yield self._broken(
                    f"was moved from {self.position} to {(message.epoch, message.revision)} without the events between"
                )
            self.position = (message.epoch, message.revision)

    def _take_snapshot(self, message: Message) -> Iterator[Position | Violation]:
        for event in message.events:
            if event.type != SNAPSHOT or event.name in self._snapshot:
                yield self._broken(f"was told {event} within its snapshot")
            self._snapshot[event.name] = (event.version, event.of)
        if message.complete:
            self._within_snapshot = False
            self.state, self.position = self._snapshot, (message.epoch, message.revision)
            self.digest = digest_of(self.state)
            yield self.position

    def _apply(self, event: Told) -> Iterator[Violation]:
        if not event.name:  # of the registry itself
            return
        before = self.state.get(event.name)
        expected = (event.type == REGISTERED) == (before is None)
        if not expected:
            yield self._broken(f"was told {event} at revision {event.revision}, having {before or 'nothing'}")
        if before is not None:
            self.digest ^= hash((event.name, self.state.pop(event.name)))
        if event.type != GONE:
            self.state[event.name] = (event.version, event.of)
            self.digest ^= hash((event.name, self.state[event.name]))

    def _broken(self, what: str) -> Violation:
        return Violation("watch", f"{self.watcher} {what}")


class Timeline:
    """What all watchers together were told.

    Attributes:
        violations: What is wrong with it.
        epochs: Each with the time at which it was first told.
        changes: Changes, differences left out, with their positions.
        digests: Of the state at each position that somebody was brought to.
        whole: There is one epoch, and no revision of it is missing: ``spans`` tell all that happened.
    """

    def __init__(self, history: History) -> None:
        self.violations: list[Violation] = []
        self.epochs: dict[str, float] = {}
        self.changes: dict[Position, Told] = {}
        self.seen: dict[Position, float] = {}
        self.differences = 0
        self._states: dict[Position, tuple[int, str]] = {}
        self._by_name: dict[str, list[tuple[int, Told]]] = {}
        self._history = history
        walks: dict[str, Walk] = {}
        for message in sorted(history.messages, key=lambda message: message.at):
            self.epochs.setdefault(message.epoch, message.at)
            self._collect(message)
            walk = walks.setdefault(message.watcher, Walk(message.watcher))
            for step in walk.take(message):
                if isinstance(step, Violation):
                    self.violations.append(step)
                else:
                    self._compare(step, walk.digest, walk.watcher)
        for belief in history.beliefs:
            self._compare((belief.epoch, belief.revision), digest_of(belief.states), belief.who)
        revisions = sorted(revision for _, revision in self.changes)
        self.whole = len(self.epochs) == 1 and revisions == list(range(1, len(revisions) + 1))
        for (_, revision), event in sorted(self.changes.items(), key=lambda item: item[0][1]):
            self._by_name.setdefault(event.name, []).append((revision, event))

    def spans(self, name: str) -> list[Span]:
        """How a name was, from the beginning to the end; only if this is ``whole``."""
        changes = self._by_name.get(name, [])
        ends = [*(float(revision) for revision, _ in changes), float("inf")]
        spans = [Span("", 0, ends[0], None)]
        for (revision, event), end in zip(changes, ends[1:], strict=True):
            spans.append(Span("" if event.type == GONE else event.version, revision, end, event))
        return spans

    def span_before(self, name: str, revision: int) -> Span:
        """How a name was just before a revision."""
        spans = self.spans(name)
        return spans[bisect_right([span.of for span in spans], revision - 1) - 1]

    def _collect(self, message: Message) -> None:
        for event in message.events:
            if event.type == SNAPSHOT:
                continue
            if event.reason == RESYNC:
                self.differences += 1
                continue
            position = (message.epoch, event.revision)
            known = self.changes.setdefault(position, event)
            self.seen.setdefault(position, message.at)
            if known != event:
                what = f"revision {event.revision} is told as {known} and, to {message.watcher}, as {event}"
                self.violations.append(Violation("revisions", what))

    def _compare(self, position: Position, digest: int, who: str) -> None:
        known, first = self._states.setdefault(position, (digest, who))
        if known != digest:
            one, other = self._rebuild(first, position), self._rebuild(who, position)
            names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            what = "; ".join(f"{name} is {one.get(name)} and {other.get(name)}" for name in names[:3])
            self.violations.append(Violation("agreement", f"at {position}, to {first} and to {who}: {what}"))

    def state_at(self, revision: int) -> int | None:
        """Digest of the state at a revision of the one epoch."""
        found = self._states.get((next(iter(self.epochs)), revision))
        return None if found is None else found[0]

    def _rebuild(self, who: str, position: Position) -> States:
        for belief in self._history.beliefs:
            if belief.who == who:
                return belief.states
        walk = Walk(who)
        for message in self._history.messages:
            if message.watcher == who:
                for step in walk.take(message):
                    if step == position:
                        return walk.state
        raise AssertionError("it was there the first time")


def digest_of(state: States) -> int:
    """A number for a state that does not depend on the order in which it came to be."""
    digest = 0
    for item in state.items():
        digest ^= hash(item)
    return digest

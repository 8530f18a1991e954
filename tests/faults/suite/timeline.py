"""``Timeline``: the changes in the order in which watchers received them, and the state at each position."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from tests.faults.suite.history import (
    GONE,
    REGISTERED,
    RESYNC,
    SNAPSHOT,
    History,
    Message,
    ObservedEvent,
    Position,
    States,
)


class Violation(NamedTuple):
    """A violated promise."""

    rule: str
    description: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.description}"


class Span(NamedTuple):
    """The state of a name from one revision until the next one."""

    version: str
    """Version of the service; empty if it was not registered."""
    revision: int
    """Revision of the service, or of its removal if it was not registered."""
    until: float
    """Revision of the next change; infinite if there was none."""
    change: ObservedEvent | None
    """Change that started the span; ``None`` for the initial state."""


class Walk:
    """Replays the messages of one watcher, maintains its state, and finds violations."""

    def __init__(self, watcher: str) -> None:
        self.watcher = watcher
        self.position: Position | None = None
        self.state: States = {}
        self.digest = 0
        """Digest of the state, updated incrementally because it is compared after every change."""
        self._snapshot: States = {}
        self._within_snapshot = False

    def apply(self, message: Message) -> Iterator[Position | Violation]:
        """Apply the next message and yield each reached position and each violation."""
        if message.fresh:
            self._snapshot, self._within_snapshot = {}, True
        if self._within_snapshot:
            yield from self._apply_snapshot(message)
            return
        assert self.position is not None, "a watch resumes from a cursor only after a snapshot"
        changes = [event for event in message.events if event.reason != RESYNC]
        if differences := [event for event in message.events if event.reason == RESYNC]:
            for event in differences:
                yield from self._apply(event)
            self.position = (message.epoch, differences[-1].revision)
            yield self.position
        for event in changes:
            epoch, last = self.position
            if message.epoch != epoch:
                yield self._violation(f"received {event} in epoch {message.epoch} after epoch {epoch} without a resync")
            elif event.revision != last + 1:
                kind = "a gap" if event.revision > last else "a repetition"
                yield self._violation(f"received {kind}: revision {event.revision} ({event}) after {last}")
            self.position = (message.epoch, event.revision)
            yield from self._apply(event)
            yield self.position
        if self.position != (message.epoch, message.revision):
            if not message.events or message.revision != self.position[1]:
                yield self._violation(
                    f"moved from {self.position} to {(message.epoch, message.revision)} without the events in between"
                )
            self.position = (message.epoch, message.revision)

    def _apply_snapshot(self, message: Message) -> Iterator[Position | Violation]:
        for event in message.events:
            if event.type != SNAPSHOT or event.name in self._snapshot:
                yield self._violation(f"received {event} within its snapshot")
            self._snapshot[event.name] = (event.version, event.service_revision)
        if message.complete:
            self._within_snapshot = False
            self.state, self.position = self._snapshot, (message.epoch, message.revision)
            self.digest = digest_of(self.state)
            yield self.position

    def _apply(self, event: ObservedEvent) -> Iterator[Violation]:
        if not event.name:  # REGISTRY_ERROR has no service
            return
        before = self.state.get(event.name)
        consistent = (event.type == REGISTERED) == (before is None)
        if not consistent:
            yield self._violation(
                f"received {event} at revision {event.revision}, but its state was {before or 'absent'}"
            )
        if before is not None:
            self.digest ^= hash((event.name, self.state.pop(event.name)))
        if event.type != GONE:
            self.state[event.name] = (event.version, event.service_revision)
            self.digest ^= hash((event.name, self.state[event.name]))

    def _violation(self, description: str) -> Violation:
        return Violation("watch", f"{self.watcher} {description}")


class Timeline:
    """The combined observations of all watchers.

    Attributes:
        violations: Violations within the observations.
        epochs: Epochs, with the time of their first message.
        changes: Changes by position, without resync events.
        seen: Time of the first message with each change.
        differences: Number of resync events.
        complete: Whether there is one epoch without missing revisions, so that ``spans`` are complete.
    """

    def __init__(self, history: History) -> None:
        self.violations: list[Violation] = []
        self.epochs: dict[str, float] = {}
        self.changes: dict[Position, ObservedEvent] = {}
        self.seen: dict[Position, float] = {}
        self.differences = 0
        self._states: dict[Position, tuple[int, str]] = {}
        self._by_name: dict[str, list[tuple[int, ObservedEvent]]] = {}
        self._history = history
        walks: dict[str, Walk] = {}
        for message in sorted(history.messages, key=lambda message: message.at):
            self.epochs.setdefault(message.epoch, message.at)
            self._collect(message)
            walk = walks.setdefault(message.watcher, Walk(message.watcher))
            for step in walk.apply(message):
                if isinstance(step, Violation):
                    self.violations.append(step)
                else:
                    self._compare(step, walk.digest, walk.watcher)
        for final in history.final_states:
            self._compare((final.epoch, final.revision), digest_of(final.states), final.owner)
        revisions = sorted(revision for _, revision in self.changes)
        self.complete = len(self.epochs) == 1 and revisions == list(range(1, len(revisions) + 1))
        for (_, revision), event in sorted(self.changes.items(), key=lambda item: item[0][1]):
            self._by_name.setdefault(event.name, []).append((revision, event))

    def events_of(self, name: str) -> list[ObservedEvent]:
        """Return the changes of a name, in the order of their revisions."""
        return [event for _, event in self._by_name.get(name, [])]

    def spans(self, name: str) -> list[Span]:
        """Return the states of a name over the whole run. Requires ``complete``."""
        changes = self._by_name.get(name, [])
        ends = [*(float(revision) for revision, _ in changes), float("inf")]
        spans = [Span("", 0, ends[0], None)]
        for (revision, event), end in zip(changes, ends[1:], strict=True):
            spans.append(Span("" if event.type == GONE else event.version, revision, end, event))
        return spans

    def span_before(self, name: str, revision: int) -> Span:
        """Return the state of a name before a revision."""
        spans = self.spans(name)
        return spans[bisect_right([span.revision for span in spans], revision - 1) - 1]

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
                description = f"revision {event.revision} is {known}, but {event} for {message.watcher}"
                self.violations.append(Violation("revisions", description))

    def _compare(self, position: Position, digest: int, owner: str) -> None:
        known, first = self._states.setdefault(position, (digest, owner))
        if known != digest:
            one, other = self._rebuild(first, position), self._rebuild(owner, position)
            names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            changes = "; ".join(f"{name} is {one.get(name)} and {other.get(name)}" for name in names[:3])
            self.violations.append(Violation("agreement", f"at {position}, for {first} and for {owner}: {changes}"))

    def state_at(self, revision: int) -> int | None:
        """Return the digest of the state at a revision of the only epoch, or ``None`` if it was not observed."""
        found = self._states.get((next(iter(self.epochs)), revision))
        return None if found is None else found[0]

    def _rebuild(self, owner: str, position: Position) -> States:
        for final in self._history.final_states:
            if final.owner == owner:
                return final.states
        walk = Walk(owner)
        for message in self._history.messages:
            if message.watcher == owner:
                for step in walk.apply(message):
                    if step == position:
                        return walk.state
        raise AssertionError("the position was observed before")


def digest_of(state: States) -> int:
    """Return a hash of a state that does not depend on the order of its items."""
    digest = 0
    for item in state.items():
        digest ^= hash(item)
    return digest

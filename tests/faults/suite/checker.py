"""Judges a history: a pure function from what was asked and told to the promises that were not kept.

What the rules rest on: a call that was answered ``ok`` happened between its start and its end; one that was refused did
not happen; one whose answer is unknown happened once, at any time from its start on, or never. Watchers tell in which
order changes happened, so that most of linearizability is looked up and not searched for; what does not need the order
is judged without it, so that a watcher that is told too little does not hide a loss.
"""

from collections.abc import Callable, Iterable, Iterator

from tests.faults.suite.history import EXPIRED, GONE, WRITES, Call, History, Told
from tests.faults.suite.timeline import Span, Timeline, Violation, digest_of

__all__ = ["RULES", "Violation", "check"]

_TOLERANCE = 0.005
"""Seconds by which times may differ that are rounded to milliseconds."""
_NEVER = float("inf")

Found = Iterator[str]


def check(history: History) -> list[Violation]:
    """Gives every promise that was not kept."""
    timeline = Timeline(history)
    violations = list(timeline.violations)
    for name, rule in RULES.items():
        violations += [Violation(name, what) for what in rule(history, timeline)]
    return violations


def _complaints(history: History, _: Timeline) -> Found:
    yield from history.complaints


def _answers(history: History, _: Timeline) -> Found:
    """Errors are those of the contract, and a read that asks for no revision never fails."""
    for call in history.calls:
        status = call.code.partition(" ")[0]
        if status in ("INTERNAL", "UNKNOWN", "DATA_LOSS", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"):
            yield f"{call}"
        plain = call.kind in ("get", "list") and not (call.strong or call.min_revision)
        if plain and history.promises.reads_go_on and call.outcome == "unknown" and status:
            yield f"a read failed: {call}"


def _one_history(history: History, timeline: Timeline) -> Found:
    """History goes on: watchers are told each change, in one epoch."""
    if history.promises.may_skip:
        return
    if len(timeline.epochs) > 1:
        yield f"a new epoch began: {list(timeline.epochs)}"
    if timeline.differences:
        yield f"{timeline.differences} events of a difference were told in place of changes"


def _followers(history: History, _: Timeline) -> Found:
    last = max((belief.revision for belief in history.beliefs), default=0)
    for follower in history.followers:
        if follower.hole:
            yield f"{follower.watcher}: {follower.hole}"
        elif follower.last < last:
            yield f"{follower.watcher} was told up to revision {follower.last} of {last}"


def _revisions(history: History, timeline: Timeline) -> Found:
    """No revision is given to two writes; a write after another has a higher one."""
    written: dict[tuple[str, int], Call] = {}
    epochs = {event.version: epoch for (epoch, _), event in timeline.changes.items()}
    answered = [call for call in _acknowledged(history) if call.kind != "unregister"]
    for call in answered:
        position = (epochs.get(call.version, ""), call.revision)
        if (other := written.setdefault(position, call)) is not call:
            yield f"two writes were answered with one revision: {other}; {call}"
    if len(timeline.epochs) == 1:
        highest: Call | None = None
        ended = iter(sorted(answered, key=lambda call: call.end))
        before = next(ended, None)
        for call in sorted(answered, key=lambda call: call.start):
            while before is not None and before.end < call.start:
                highest = before if highest is None or before.revision > highest.revision else highest
                before = next(ended, None)
            if highest is not None and call.revision <= highest.revision:
                yield f"revisions went back: {call} after {highest}"


def _changes_are_calls(history: History, timeline: Timeline) -> Found:
    """Each change that is told is one write, with its content and the revision that it was answered with."""
    calls = {call.version: call for call in history.calls if call.version}
    told: dict[str, Told] = {}
    for event in timeline.changes.values():
        if event.type == GONE or not event.name:
            continue
        call = calls.get(event.version)
        if (first := told.setdefault(event.version, event)) is not event:
            yield f"one write took place twice, at revisions {first.revision} and {event.revision}: {call}"
        elif call is None or call.name != event.name:
            yield f"a change that nobody asked for: {event} at revision {event.revision}"
        elif call.outcome == "refused":
            yield f"a refused write took place at revision {event.revision}: {call}"
        elif call.outcome == "ok" and call.revision != event.revision:
            yield f"a write was answered with another revision than {event.revision}, under which it is told: {call}"


def _acknowledged_is_told(history: History, timeline: Timeline) -> Found:
    """Each acknowledged write is told."""
    if not timeline.whole:
        return
    events = timeline.changes.values()
    written = {event.version for event in events if event.type != GONE}
    removed = {(event.name, event.of) for event in events if event.type == GONE and event.reason != EXPIRED}
    for call in _acknowledged(history):
        told = (call.name, call.revision) in removed if call.kind == "unregister" else call.version in written
        if not told:
            yield f"an acknowledged write is told to nobody: {call}"


def _nothing_lost(history: History, timeline: Timeline) -> Found:
    """What is there in the end, or is known to a heartbeat, is not older than what was acknowledged before."""
    since = max(timeline.epochs.values(), default=0) if history.promises.may_lose and len(timeline.epochs) > 1 else 0
    by_name = _by_name(call for call in history.calls if call.kind in WRITES and call.outcome != "refused")
    writers = {call.version: call for call in history.calls if call.version}
    expired = {event.name for event in timeline.changes.values() if event.reason == EXPIRED}
    for belief in history.beliefs:
        for name, calls in by_name.items():
            version = belief.states.get(name, ("", 0))[0]
            lost = [call for call in calls if call.outcome == "ok" and call.start > since]
            if version:
                writer = writers.get(version)
                until = _NEVER if writer is None else _effective_end(writer)
                lost = [call for call in lost if call.version != version and call.start > until]
            else:
                removals = max((_effective_end(call) for call in calls if call.kind == "unregister"), default=0)
                lost = [] if name in expired else [c for c in lost if c.kind != "unregister" and c.start > removals]
            if lost:
                has = f"{version} of {writers.get(version)}" if version else "nothing"
                yield f"{belief.who} has {has}, although this was acknowledged: {lost[-1]}"
    for beat in history.calls:
        if beat.kind == "heartbeat" and beat.outcome == "ok" and not beat.seen and beat.name not in expired:
            yield from _unknown_to(beat, by_name.get(beat.name, []), since)


def _unknown_to(beat: Call, calls: list[Call], since: float) -> Found:
    removals = [call for call in calls if call.kind == "unregister" and call.start < beat.end]
    removed = max((_effective_end(call) for call in removals), default=0)
    if since > beat.start:  # what it found may be of the time before the loss, or of the time after it
        return
    for call in calls:
        there = call.kind != "unregister" and call.outcome == "ok" and call.end < beat.start
        if there and call.start > max(removed, since):
            yield f"a heartbeat found nothing, although this was acknowledged: {call}"
            return


def _reads(history: History, timeline: Timeline) -> Found:
    """A read shows what was, not older than what its process, its ``min_revision`` or a strong read asks for."""
    if not timeline.whole:
        return
    makers = _Makers(history)
    for call, here, anywhere in _floors(history):
        if call.outcome != "ok" or call.kind not in ("get", "list"):
            continue
        floor = max(here, call.min_revision, anywhere if call.strong else 0)
        if call.kind == "get":
            seen = [span for span in timeline.spans(call.name) if span.version == call.seen]
            seen = [span for span in seen if not call.seen or span.of == call.revision]
            if not any(makers.begun(call.name, span) <= call.end for span in seen):
                yield f"a read of what had never been: {call}"
            elif max(span.until for span in seen) <= floor:
                yield f"a read is older than revision {floor}: {call}"
        elif call.revision < floor:
            yield f"a read is older than revision {floor}: {call}"
        elif timeline.state_at(call.revision) not in (None, digest_of(call.states)):
            yield f"a read of everything is not the state at revision {call.revision}: {call}"


def _preconditions(history: History, timeline: Timeline) -> Found:
    """What was taken rested on what was true when it happened; what was refused, on what was true during the call."""
    if not timeline.whole:
        return
    positions = {event.version: revision for (_, revision), event in timeline.changes.items() if event.type != GONE}
    removals = {(e.name, e.of): revision for (_, revision), e in timeline.changes.items() if e.type == GONE}
    makers = _Makers(history)
    for call, _, anywhere in _floors(history):
        if call.kind not in WRITES:
            continue
        if call.outcome == "ok":
            at = removals.get((call.name, call.revision)) if call.kind == "unregister" else positions.get(call.version)
            if at is None:
                continue  # told to nobody, which another rule says
            before = timeline.span_before(call.name, at)
            if (
                (call.kind == "create" and before.version)
                or (call.kind in ("update", "unregister") and not before.version)
                or (call.expected and before.of != call.expected)
            ):
                yield f"a write took place at revision {at} against its precondition; before, it was {before}: {call}"
        elif call.outcome == "refused" and "WRITE_CONFLICT" not in call.code:
            spans = [span for span in timeline.spans(call.name) if span.until > anywhere]
            if not any(_refuses(span, call) and makers.begun(call.name, span) <= call.end for span in spans):
                yield f"a write was refused for what was not true: {call}"


def _refuses(span: Span, call: Call) -> bool:
    match call.code.partition(" ")[0]:
        case "ALREADY_EXISTS":
            return bool(span.version)
        case "NOT_FOUND":
            return not span.version
        case _:
            return bool(span.version) and span.of != call.expected


def _leases(history: History, timeline: Timeline) -> Found:
    """Nothing expires whose heartbeat, or registration, was acknowledged and begun less than a ttl before."""
    renewals = _by_name(
        call
        for call in history.calls
        if call.outcome == "ok" and (call.ttl or (call.kind == "heartbeat" and call.seen))
    )
    ttls = {call.name: call.ttl for call in history.calls if call.ttl}
    for position, event in timeline.changes.items():
        if event.reason != EXPIRED:
            continue
        if event.name not in ttls:
            yield f"{event.name} expired at revision {event.revision}, long before its lease could end"
            continue
        at = timeline.seen[position]
        if history.promises.clock_is_true:
            at = min(at, event.at)
        for call in renewals.get(event.name, []):
            left = call.start + ttls[event.name] - at
            if call.end < at and left > _TOLERANCE:
                yield f"{event.name} expired at revision {event.revision}, {left:.2f} s too early, after {call}"
                break


RULES: dict[str, Callable[[History, Timeline], Found]] = {
    "complaint": _complaints,
    "answers": _answers,
    "history": _one_history,
    "followers": _followers,
    "revisions": _revisions,
    "changes": _changes_are_calls,
    "acknowledged": _acknowledged_is_told,
    "lost": _nothing_lost,
    "reads": _reads,
    "preconditions": _preconditions,
    "leases": _leases,
}


class _Makers:
    """Which calls made what is told."""

    def __init__(self, history: History) -> None:
        self._writers = {call.version: call.start for call in history.calls if call.version}
        self._removers: dict[tuple[str, int], float] = {}
        for call in history.calls:
            if call.kind == "unregister" and call.outcome != "refused":
                key = (call.name, call.revision)  # 0 if that is unknown
                self._removers[key] = min(call.start, self._removers.get(key, _NEVER))

    def begun(self, name: str, span: Span) -> float:
        """From when on a service can have been so."""
        if span.change is None:
            return 0
        if span.version:
            return self._writers.get(span.version, 0)
        if span.change.reason == EXPIRED:
            return 0
        return self._removers.get((name, span.change.of), self._removers.get((name, 0), 0))


def _acknowledged(history: History) -> list[Call]:
    return [call for call in history.calls if call.kind in WRITES and call.outcome == "ok"]


def _effective_end(call: Call) -> float:
    """When it had happened, if it did."""
    return call.end if call.outcome == "ok" else _NEVER


def _by_name(calls: Iterable[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.name, []).append(call)
    return found


def _floors(history: History) -> Iterator[tuple[Call, int, int]]:
    """Gives each call with what had been reached before it began: at its process, and by acknowledged writes anywhere.

    A process answers a write once it has applied it, and applies in order: so whoever asks it later sees as much.
    """
    here: dict[int, int] = {}
    anywhere = 0
    ended = iter(sorted((call for call in history.calls if call.outcome == "ok"), key=lambda call: call.end))
    before = next(ended, None)
    for call in sorted(history.calls, key=lambda call: call.start):
        while before is not None and before.end < call.start:
            here[before.process] = max(here.get(before.process, 0), before.revision)
            if before.kind in WRITES:
                anywhere = max(anywhere, before.revision)
            before = next(ended, None)
        yield call, here.get(call.process, 0), anywhere

"""Checks a history: a pure function from calls and messages to the violated promises.

Assumptions of the rules: a call with the outcome ``ok`` took effect between its start and its end; a refused call had
no effect; a call with an unknown outcome took effect once, at any time after its start, or never. The messages of
watchers contain the order of changes, so that most checks of linearizability are lookups instead of a search. Rules
that do not need the order do not use it, so that a watcher with missing events cannot hide a loss.
"""

from collections.abc import Callable, Iterable, Iterator

from tests.faults.suite.history import EXPIRED, GONE, WRITES, Call, History, ObservedEvent, Removal
from tests.faults.suite.timeline import Span, Timeline, Violation, digest_of

__all__ = ["RULES", "Violation", "check"]

_TOLERANCE_SECONDS = 0.005
"""Times are rounded to milliseconds."""
_NEVER = float("inf")

Found = Iterator[str]


def check(history: History) -> list[Violation]:
    """Return all violations in a history."""
    timeline = Timeline(history)
    violations = list(timeline.violations)
    for name, rule in RULES.items():
        violations += [Violation(name, description) for description in rule(history, timeline)]
    return violations


def _problems(history: History, _: Timeline) -> Found:
    yield from history.problems


def _answers(history: History, _: Timeline) -> Found:
    """Errors are those of the contract, and eventually consistent reads never fail."""
    for call in history.calls:
        status = call.code.partition(" ")[0]
        if status in ("INTERNAL", "UNKNOWN", "DATA_LOSS", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"):
            yield f"{call}"
        plain = call.kind in ("get", "list") and not (call.strong or call.min_revision)
        if plain and history.promises.reads_succeed and call.outcome == "unknown" and status:
            yield f"a read failed: {call}"


def _one_history(history: History, timeline: Timeline) -> Found:
    """Watchers receive every change, in one epoch."""
    if history.promises.may_skip:
        return
    if len(timeline.epochs) > 1:
        yield f"a new epoch started: {list(timeline.epochs)}"
    if timeline.differences:
        yield f"{timeline.differences} resync events were sent instead of changes"


def _followers(history: History, _: Timeline) -> Found:
    last = max((final.revision for final in history.final_states), default=0)
    for follower in history.followers:
        if follower.error:
            yield f"{follower.watcher}: {follower.error}"
        elif follower.last < last:
            yield f"{follower.watcher} received revisions up to {follower.last} of {last}"


def _revisions(history: History, timeline: Timeline) -> Found:
    """No two writes have the same revision, and later writes have higher revisions."""
    written: dict[tuple[str, int], Call] = {}
    epochs = {event.version: epoch for (epoch, _), event in timeline.changes.items()}
    answered = [call for call in _acknowledged(history) if call.kind != "unregister"]
    for call in answered:
        position = (epochs.get(call.version, ""), call.revision)
        if (other := written.setdefault(position, call)) is not call:
            yield f"two writes have the same revision: {other}; {call}"
    if len(timeline.epochs) == 1:
        highest: Call | None = None
        ended = iter(sorted(answered, key=lambda call: call.end))
        before = next(ended, None)
        for call in sorted(answered, key=lambda call: call.start):
            while before is not None and before.end < call.start:
                highest = before if highest is None or before.revision > highest.revision else highest
                before = next(ended, None)
            if highest is not None and call.revision <= highest.revision:
                yield f"a revision decreased: {call} after {highest}"


def _changes_are_calls(history: History, timeline: Timeline) -> Found:
    """Each change corresponds to one write with the same content and revision."""
    calls = {call.version: call for call in history.calls if call.version}
    first_events: dict[str, ObservedEvent] = {}
    for event in timeline.changes.values():
        if event.type == GONE or not event.name:
            continue
        call = calls.get(event.version)
        if (first := first_events.setdefault(event.version, event)) is not event:
            yield f"a write took effect twice, at revisions {first.revision} and {event.revision}: {call}"
        elif call is None or call.name != event.name:
            yield f"a change without a call: {event} at revision {event.revision}"
        elif call.outcome == "refused":
            yield f"a refused write took effect at revision {event.revision}: {call}"
        elif call.outcome == "ok" and call.revision != event.revision:
            yield f"a write returned a revision other than {event.revision}, its revision for watchers: {call}"


def _acknowledged_writes_are_sent(history: History, timeline: Timeline) -> Found:
    """Watchers receive each acknowledged write."""
    if not timeline.complete:
        return
    events = timeline.changes.values()
    written = {event.version for event in events if event.type != GONE}
    removed = {
        (event.name, event.service_revision) for event in events if event.type == GONE and event.reason != EXPIRED
    }
    for call in _acknowledged(history):
        sent = (call.name, call.revision) in removed if call.kind == "unregister" else call.version in written
        if not sent:
            yield f"no watcher received an acknowledged write: {call}"


def _nothing_lost(history: History, timeline: Timeline) -> Found:
    """Final states and heartbeats are not older than the acknowledged writes before them."""
    since = max(timeline.epochs.values(), default=0) if history.promises.may_lose and len(timeline.epochs) > 1 else 0
    by_name = _by_name(call for call in history.calls if call.kind in WRITES and call.outcome != "refused")
    writers = {call.version: call for call in history.calls if call.version}
    expired = {event.name for event in timeline.changes.values() if event.reason == EXPIRED}
    for final in history.final_states:
        for name, calls in by_name.items():
            version = final.states.get(name, ("", 0))[0]
            lost = [call for call in calls if call.outcome == "ok" and call.start > since]
            if version:
                writer = writers.get(version)
                until = _NEVER if writer is None else _effective_end(writer)
                lost = [call for call in lost if call.version != version and call.start > until]
            else:
                removals = max((_effective_end(call) for call in calls if call.kind == "unregister"), default=0)
                lost = [] if name in expired else [c for c in lost if c.kind != "unregister" and c.start > removals]
            if lost:
                held = f"version {version} of {writers.get(version)}" if version else "nothing"
                yield f"{final.owner} holds {held}, although this was acknowledged: {lost[-1]}"
    for beat in history.calls:
        if beat.kind == "heartbeat" and beat.outcome == "ok" and not beat.seen and beat.name not in expired:
            yield from _check_unknown(beat, by_name.get(beat.name, []), since)


def _check_unknown(beat: Call, calls: list[Call], since: float) -> Found:
    removals = [call for call in calls if call.kind == "unregister" and call.start < beat.end]
    removed = max((_effective_end(call) for call in removals), default=0)
    if since > beat.start:  # the heartbeat can belong to the time before or after the loss
        return
    for call in calls:
        exists = call.kind != "unregister" and call.outcome == "ok" and call.end < beat.start
        if exists and call.start > max(removed, since):
            yield f"the name of a heartbeat was unknown, although this was acknowledged: {call}"
            return


def _reads(history: History, timeline: Timeline) -> Found:
    """Reads return a past state, not older than required by their process, ``min_revision`` or strong consistency."""
    if not timeline.complete:
        return
    origins = _Origins(history)
    for call, local, acknowledged in _floors(history):
        if call.outcome != "ok" or call.kind not in ("get", "list"):
            continue
        floor = max(local, call.min_revision, acknowledged if call.strong else 0)
        if call.kind == "get":
            seen = [span for span in timeline.spans(call.name) if span.version == call.seen]
            seen = [span for span in seen if not call.seen or span.revision == call.revision]
            if not any(origins.earliest(call.name, span) <= call.end for span in seen):
                yield f"a read returned a state that never existed: {call}"
            elif max(span.until for span in seen) <= floor:
                yield f"a read is older than revision {floor}: {call}"
        elif call.revision < floor:
            yield f"a read is older than revision {floor}: {call}"
        elif timeline.state_at(call.revision) not in (None, digest_of(call.states)):
            yield f"a list differs from the state at revision {call.revision}: {call}"


def _preconditions(history: History, timeline: Timeline) -> Found:
    """The preconditions of accepted writes held at their revision; those of refused writes failed during the call."""
    if not timeline.complete:
        return
    positions = {event.version: revision for (_, revision), event in timeline.changes.items() if event.type != GONE}
    removals = {
        (e.name, e.service_revision): revision for (_, revision), e in timeline.changes.items() if e.type == GONE
    }
    origins = _Origins(history)
    for call, _, acknowledged in _floors(history):
        if call.kind not in WRITES:
            continue
        if call.outcome == "ok":
            at = removals.get((call.name, call.revision)) if call.kind == "unregister" else positions.get(call.version)
            if at is None:
                continue  # not received by any watcher, which another rule reports
            before = timeline.span_before(call.name, at)
            if (
                (call.kind == "create" and before.version)
                or (call.kind in ("update", "unregister") and not before.version)
                or (call.expected and before.revision != call.expected)
            ):
                yield f"a write at revision {at} violated its precondition; the state before it was {before}: {call}"
        elif call.outcome == "refused" and "WRITE_CONFLICT" not in call.code:
            spans = [span for span in timeline.spans(call.name) if span.until > acknowledged]
            if not any(_refuses(span, call) and origins.earliest(call.name, span) <= call.end for span in spans):
                yield f"a write was refused although its precondition held: {call}"


def _refuses(span: Span, call: Call) -> bool:
    match call.code.partition(" ")[0]:
        case "ALREADY_EXISTS":
            return bool(span.version)
        case "NOT_FOUND":
            return not span.version
        case _:
            return bool(span.version) and span.revision != call.expected


def _leases(history: History, timeline: Timeline) -> Found:
    """No lease expires within its length after the start of an acknowledged heartbeat or registration."""
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
            yield f"{event.name} expired at revision {event.revision}, long before the end of its lease"
            continue
        at = timeline.seen[position]
        if history.promises.clock_is_correct:
            at = min(at, event.at)
        for call in renewals.get(event.name, []):
            remaining = call.start + ttls[event.name] - at
            if call.end < at and remaining > _TOLERANCE_SECONDS:
                yield f"{event.name} expired at revision {event.revision}, {remaining:.2f} s too early, after {call}"
                break


def _past(history: History, timeline: Timeline) -> Found:
    """Past events are those that watchers received, newest first, and explanations return the last removal."""
    may_skip = history.promises.may_skip
    for account in history.accounts:
        changes = {revision: event for (epoch, revision), event in timeline.changes.items() if epoch == account.epoch}
        listed = [event.revision for event in account.events]
        newest = max([account.revision, *listed])
        if account.oldest and listed != list(range(newest, account.oldest - 1, -1)):
            yield f"{account.owner} keeps revisions {account.oldest} to {newest}, but lists {listed}"
        if (account.oldest != 1 and not may_skip) or (not account.oldest and listed):
            yield f"{account.owner} at revision {newest} reports {account.oldest} as the oldest event, lists {listed}"
        for event in account.events:
            known = changes.get(event.revision)
            if known != event and not (known is None and may_skip):
                yield f"{account.owner} lists {event} at revision {event.revision}, but watchers received {known}"
        for name, removal in account.removals.items():
            last = next((e for e in reversed(timeline.events_of(name)) if changes.get(e.revision) is e), None)
            yield from _check_removal(
                f"{account.owner} returns {removal} about {name}", removal, last, may_skip=may_skip
            )


def _check_removal(text: str, removal: Removal, last: ObservedEvent | None, *, may_skip: bool) -> Found:
    expected = last.revision if last is not None and last.type == GONE else 0
    unknown = may_skip and (removal.reason == "resync" or not removal.revision or last is None)
    if removal.revision != expected and not unknown:
        yield f"{text}, but its last event is {last} at revision {expected}"
    elif removal.revision == expected and last is not None and expected:
        reason = last.reason.removeprefix("EVENT_REASON_").lower()
        if removal.reason != reason or removal.explained != expected:
            yield f"{text}, but it left at {expected}: {reason}"
    if bool(removal.reason) != (" is not registered: it" in removal.summary):
        yield text


RULES: dict[str, Callable[[History, Timeline], Found]] = {
    "problem": _problems,
    "answers": _answers,
    "history": _one_history,
    "followers": _followers,
    "revisions": _revisions,
    "changes": _changes_are_calls,
    "acknowledged": _acknowledged_writes_are_sent,
    "lost": _nothing_lost,
    "reads": _reads,
    "preconditions": _preconditions,
    "leases": _leases,
    "past": _past,
}
"""Rules by name. The docstring of a rule is the promise that it checks."""


class _Origins:
    """The calls that caused the observed changes."""

    def __init__(self, history: History) -> None:
        self._writers = {call.version: call.start for call in history.calls if call.version}
        self._removers: dict[tuple[str, int], float] = {}
        for call in history.calls:
            if call.kind == "unregister" and call.outcome != "refused":
                key = (call.name, call.revision)  # the revision is 0 if it is unknown
                self._removers[key] = min(call.start, self._removers.get(key, _NEVER))

    def earliest(self, name: str, span: Span) -> float:
        """Return the earliest time at which the state of a span can have existed."""
        if span.change is None:
            return 0
        if span.version:
            return self._writers.get(span.version, 0)
        if span.change.reason == EXPIRED:
            return 0
        return self._removers.get((name, span.change.service_revision), self._removers.get((name, 0), 0))


def _acknowledged(history: History) -> list[Call]:
    return [call for call in history.calls if call.kind in WRITES and call.outcome == "ok"]


def _effective_end(call: Call) -> float:
    """Return the time at which the call had certainly taken effect."""
    return call.end if call.outcome == "ok" else _NEVER


def _by_name(calls: Iterable[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.name, []).append(call)
    return found


def _floors(history: History) -> Iterator[tuple[Call, int, int]]:
    """Yield each call with the revisions reached before its start: on its process, and by acknowledged writes.

    A process responds to a write after it has applied it, and applies changes in order, so later reads see the write.
    """
    local: dict[int, int] = {}
    acknowledged = 0
    ended = iter(sorted((call for call in history.calls if call.outcome == "ok"), key=lambda call: call.end))
    before = next(ended, None)
    for call in sorted(history.calls, key=lambda call: call.start):
        while before is not None and before.end < call.start:
            local[before.process] = max(local.get(before.process, 0), before.revision)
            if before.kind in WRITES:
                acknowledged = max(acknowledged, before.revision)
            before = next(ended, None)
        yield call, local.get(call.process, 0), acknowledged

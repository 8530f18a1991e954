"""The checker of the fault suite finds and names violations, and accepts valid histories."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.suite.checker import check
from tests.faults.suite.history import (
    EXPIRED,
    GONE,
    REGISTERED,
    RESYNC,
    SNAPSHOT,
    Account,
    Call,
    FinalState,
    Follower,
    History,
    Kind,
    Message,
    ObservedEvent,
    Promises,
    Removal,
)

UPDATED = "EVENT_TYPE_SERVICE_UPDATED"
BY_CLIENT = "EVENT_REASON_CLIENT_REQUEST"
TTL = 5.0


def call(kind: Kind, name: str, at: float, revision: int = 0, seen: str = "", **more: object) -> Call:
    """Return a successful call with a duration of 0.1 s."""
    version = seen if kind in ("register", "create", "update") else ""
    fields: dict[str, object] = {"version": version, "end": at + 0.1, "outcome": "ok", **more}
    process = fields.pop("process", 0)
    return Call("client", process, kind, name, at, revision=revision, seen=seen, **fields)  # type: ignore[arg-type]


def event(
    type_: str, name: str, version: str, revision: int, service_revision: int = 0, reason: str = BY_CLIENT
) -> ObservedEvent:
    return ObservedEvent(type_, reason, name, version, revision, service_revision or revision, at=revision + 0.05)


def message(*events: ObservedEvent, watcher: str = "one", revision: int = 0, epoch: str = "e", **more: bool) -> Message:
    newest = revision or (events[-1].revision if events else 0)
    return Message(watcher, 0, newest + 0.1, epoch, newest, list(events), **more)


def removal(revision: int = 4, reason: str = "client_request", explained: int = 4) -> Removal:
    return Removal(revision, reason, explained, "b is not registered: it was unregistered at 4 o'clock.")


CHANGES = (
    event(REGISTERED, "a", "1", 1),
    event(UPDATED, "a", "2", 2),
    event(REGISTERED, "b", "3", 3),
    event(GONE, "b", "3", 4, service_revision=3),
    event(UPDATED, "a", "5", 5),
)


def valid_history() -> History:
    """Return a history in which revision n is written in second n. Of two watchers, one resumes and one starts over."""
    last_state = {"a": ("5", 5)}
    snapshot = message(event(SNAPSHOT, "a", "2", 2), watcher="two", revision=2, fresh=True)
    complete = message(watcher="two", revision=2, complete=True)
    return History(
        calls=[
            call("register", "a", 1, 1, "1", ttl=TTL),
            call("update", "a", 2, 2, "2", expected=1),
            call("get", "a", 2.2, 2, "2"),
            call("create", "b", 3, 3, "3"),
            call("create", "b", 3.2, code="ALREADY_EXISTS SERVICE_EXISTS", outcome="refused", version="x"),
            call("heartbeat", "a", 3.3, seen="known"),
            call("unregister", "b", 4, 3, "3"),
            call("get", "b", 4.2),
            call("update", "b", 4.3, code="NOT_FOUND SERVICE_NOT_FOUND", outcome="refused", version="y"),
            call("update", "a", 4.4, code="ABORTED REVISION_MISMATCH", outcome="refused", version="z", expected=1),
            call("list", "", 4.5, 4, states={"a": ("2", 2)}, strong=True),
            call("update", "a", 5, version="5", end=float("inf"), outcome="unknown", code="UNAVAILABLE"),
            call("list", "", 6, 5, states=last_state, min_revision=5),
        ],
        messages=[
            message(fresh=True, complete=True),
            message(CHANGES[0]),
            snapshot,
            complete,
            message(*CHANGES[1:3]),
            message(*CHANGES[3:]),
            message(*CHANGES[2:], watcher="two"),
        ],
        followers=[Follower("three", 2, 5)],
        final_states=[FinalState(owner, "e", 5, dict(last_state)) for owner in ("Redis", "process 0", "process 1")],
        accounts=[Account("process 0", "e", 5, 1, list(reversed(CHANGES)), {"b": removal()})],
    )


def test_valid_history_has_no_violations() -> None:
    assert check(valid_history()) == []


def test_history_survives_writing_and_reading(tmp_path: Path) -> None:
    history = valid_history()
    history.write(tmp_path / "history.jsonl")
    assert History.read(tmp_path / "history.jsonl") == history


# Changes to the valid history, with the rule and words of the expected violation.


def gap(history: History) -> None:
    history.messages[4].events.pop(0)


def jump_without_events(history: History) -> None:
    history.messages[5] = message(revision=5)


def repetition(history: History) -> None:
    history.messages[4].events.insert(1, CHANGES[1])


def different_snapshot(history: History) -> None:
    history.messages[2].events[0] = event(SNAPSHOT, "a", "1", 1)


def two_changes_of_one_revision(history: History) -> None:
    history.messages[6].events[0] = event(REGISTERED, "c", "3", 3)


def impossible_change(history: History) -> None:
    for message_ in history.messages:
        message_.events = [event(GONE, "c", "3", 4) if each is CHANGES[3] else each for each in message_.events]


def epoch_without_resync(history: History) -> None:
    history.messages[5].epoch = "f"


def new_epoch(history: History) -> None:
    end = message(event(GONE, "a", "5", 0, service_revision=5, reason=RESYNC), epoch="f")
    end.at, end.events[0].revision = 9, 0
    history.messages.append(end)


def follower_with_an_error(history: History) -> None:
    history.followers[0].error = "received revision 4 after 2"


def follower_behind(history: History) -> None:
    history.followers[0].last = 4


def same_revision_twice(history: History) -> None:
    history.calls[1].revision = 1


def decreasing_revision(history: History) -> None:
    history.calls[1].start, history.calls[1].end = 3.5, 3.6
    history.calls[2:3] = []


def unobserved_write(history: History) -> None:
    history.calls.append(call("register", "c", 5.5, 5, "lost", process=1))


def unobserved_removal(history: History) -> None:
    history.calls.append(call("unregister", "a", 5.5, 5, "5"))


def change_without_a_call(history: History) -> None:
    history.calls.remove(history.calls[3])


def effective_refused_write(history: History) -> None:
    history.calls[11].outcome = "refused"
    history.calls[11].code = "ABORTED REVISION_MISMATCH"


def effective_twice(history: History) -> None:
    history.calls[11].version = "2"
    for message_ in history.messages:
        message_.events = [replace(e, version="2") if e.version == "5" else e for e in message_.events]


def lost_at_the_end(history: History) -> None:
    # No watcher received it: the rule must work without watchers.
    history.messages.clear()
    history.followers.clear()
    history.calls.append(call("register", "c", 5.5, 6, "6"))


def older_at_the_end(history: History) -> None:
    history.messages.clear()
    history.followers.clear()
    for final in history.final_states:
        final.states = {"a": ("1", 1)}


def unknown_to_a_heartbeat(history: History) -> None:
    history.calls[5].seen = ""


def different_final_states(history: History) -> None:
    history.final_states[2].states = {"a": ("2", 2)}


def stale_own_write(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 1, "1"


def stale_min_revision(history: History) -> None:
    history.calls[2].process, history.calls[2].min_revision = 1, 3
    history.calls[2].revision, history.calls[2].seen = 1, "1"


def stale_strong_read(history: History) -> None:
    history.calls[10].process = 1
    history.calls[10].revision, history.calls[10].states = 1, {"a": ("1", 1)}


def missing_service(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 0, ""


def read_of_an_unknown_version(history: History) -> None:
    history.calls[2].seen = "9"


def read_of_a_future_version(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 5, "5"


def inconsistent_list(history: History) -> None:
    history.calls[10].states = {"a": ("1", 1)}


def created_twice(history: History) -> None:
    history.calls[1].kind, history.calls[1].expected = "create", 0


def wrong_expectation(history: History) -> None:
    history.calls[1].expected = 7


def wrongly_refused(history: History) -> None:
    history.calls[4].code = "NOT_FOUND SERVICE_NOT_FOUND"


def wrong_mismatch(history: History) -> None:
    history.calls[9].expected = 2


def early_expiry(history: History) -> None:
    _expire(history, at=7.2)


def expiry_of_a_long_lease(history: History) -> None:
    _expire(history, at=20)
    history.calls[0].ttl = 0


def failed_read(history: History) -> None:
    history.calls[2].outcome, history.calls[2].code = "unknown", "UNAVAILABLE STORE_UNAVAILABLE"


def internal_error(history: History) -> None:
    history.calls[11].code = "INTERNAL INTERNAL"


def logged_error(history: History) -> None:
    history.problems.append("process 0 logged a bug")


def missing_past_event(history: History) -> None:
    del history.accounts[0].events[2]


def repeated_past_event(history: History) -> None:
    history.accounts[0].events.insert(2, history.accounts[0].events[2])


def missing_newest_past_event(history: History) -> None:
    del history.accounts[0].events[0]


def dropped_past(history: History) -> None:
    history.accounts[0].oldest = 2
    del history.accounts[0].events[-1]


def different_past_event(history: History) -> None:
    history.accounts[0].events[0] = event(GONE, "a", "5", 5)


def unknown_removal_of_the_past(history: History) -> None:
    history.accounts[0].removals["b"] = Removal(0, "", 0, "b is not registered.")


def older_removal(history: History) -> None:
    history.accounts[0].removals["b"] = removal(revision=3)


def wrong_reason(history: History) -> None:
    history.accounts[0].removals["b"] = removal(reason="lease_expired")


def removal_that_never_happened(history: History) -> None:
    history.accounts[0].removals["c"] = removal()


def unexplained_removal(history: History) -> None:
    history.accounts[0].removals["b"] = removal(explained=0)


def _expire(history: History, at: float) -> None:
    end = message(event(GONE, "a", "5", 6, service_revision=5, reason=EXPIRED))
    end.at = end.events[0].at = at
    history.messages += [end, replace(end, watcher="two")]
    history.followers[0].last = 6
    history.accounts.clear()
    for final in history.final_states:
        final.revision, final.states = 6, {}


WRONG: list[tuple[Callable[[History], None], str, str]] = [
    (gap, "watch", "a gap: revision 3"),
    (jump_without_events, "watch", "without the events in between"),
    (repetition, "watch", "a repetition: revision 2"),
    (different_snapshot, "agreement", "a is ('1', 1) and ('2', 2)"),
    (two_changes_of_one_revision, "revisions", "revision 3 is "),
    (impossible_change, "watch", "c unregistered 3 (client_request) at revision 4, but its state was absent"),
    (epoch_without_resync, "watch", "after epoch e without a resync"),
    (new_epoch, "history", "a new epoch started"),
    (follower_with_an_error, "followers", "received revision 4 after 2"),
    (follower_behind, "followers", "revisions up to 4 of 5"),
    (same_revision_twice, "revisions", "two writes have the same revision"),
    (decreasing_revision, "revisions", "a revision decreased"),
    (unobserved_write, "acknowledged", "no watcher received"),
    (unobserved_removal, "acknowledged", "no watcher received"),
    (change_without_a_call, "changes", "a change without a call"),
    (effective_refused_write, "changes", "a refused write took effect"),
    (effective_twice, "changes", "a write took effect twice"),
    (lost_at_the_end, "lost", "Redis holds nothing, although"),
    (older_at_the_end, "lost", "process 0 holds version 1 of"),
    (unknown_to_a_heartbeat, "lost", "the name of a heartbeat was unknown"),
    (different_final_states, "agreement", "for process 1: a is ('5', 5) and ('2', 2)"),
    (stale_own_write, "reads", "older than revision 2"),
    (stale_min_revision, "reads", "older than revision 3"),
    (stale_strong_read, "reads", "older than revision 3"),
    (missing_service, "reads", "older than revision 2"),
    (read_of_an_unknown_version, "reads", "a state that never existed"),
    (read_of_a_future_version, "reads", "a state that never existed"),
    (inconsistent_list, "reads", "differs from the state at revision 4"),
    (created_twice, "preconditions", "violated its precondition"),
    (wrong_expectation, "preconditions", "violated its precondition"),
    (wrongly_refused, "preconditions", "refused although its precondition held"),
    (wrong_mismatch, "preconditions", "refused although its precondition held"),
    (early_expiry, "leases", "1.10 s too early"),
    (expiry_of_a_long_lease, "leases", "long before"),
    (failed_read, "answers", "a read failed"),
    (internal_error, "answers", "INTERNAL"),
    (logged_error, "problem", "logged a bug"),
    (missing_past_event, "past", "lists [5, 4, 2, 1]"),
    (repeated_past_event, "past", "lists [5, 4, 3, 3, 2, 1]"),
    (missing_newest_past_event, "past", "lists [4, 3, 2, 1]"),
    (dropped_past, "past", "reports 2 as the oldest event"),
    (different_past_event, "past", "but watchers received a updated 5"),
    (unknown_removal_of_the_past, "past", "its last event is b unregistered 3"),
    (older_removal, "past", "at revision 4"),
    (wrong_reason, "past", "but it left at 4: client_request"),
    (removal_that_never_happened, "past", "its last event is None"),
    (unexplained_removal, "past", "but it left at 4"),
]


@pytest.mark.parametrize(("corrupt", "rule", "words"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_violation_is_found(corrupt: Callable[[History], None], rule: str, words: str) -> None:
    history = valid_history()
    corrupt(history)
    found = check(history)
    assert [violation for violation in found if violation.rule == rule and words in violation.description], found


def unknown_write_without_effect(history: History) -> None:
    history.calls.append(call("register", "a", 5.2, outcome="unknown", end=float("inf"), version="never"))


def unknown_removal(history: History) -> None:
    """The removal may have taken effect before the update with an unknown outcome."""
    history.calls.append(call("unregister", "a", 4.9, outcome="unknown", end=float("inf")))


def slow_read(history: History) -> None:
    """A process may be behind until it has returned a newer revision."""
    history.calls.append(Call("client", 1, "get", "b", 4.6, end=4.7, outcome="ok", revision=3, seen="3"))


def read_during_a_write(history: History) -> None:
    history.calls.append(call("get", "a", 1.95, 2, "2"))


def due_expiry(history: History) -> None:
    _expire(history, at=8.31)


def expiry_with_an_unacknowledged_heartbeat(history: History) -> None:
    _expire(history, at=8.31)
    history.calls.append(call("heartbeat", "a", 5, outcome="unknown", end=float("inf")))


def announced_loss(history: History) -> None:
    history.promises = Promises(may_lose=True, may_skip=True)
    new_epoch(history)
    for final in history.final_states:
        final.epoch, final.revision, final.states = "f", 0, {}
    history.followers.clear()
    history.accounts = [Account("process 0", "f", 0, 0, [], {"b": removal()})]


def failed_read_of_a_killed_process(history: History) -> None:
    history.promises.reads_succeed = False
    failed_read(history)


@pytest.mark.parametrize(
    "change",
    [
        unknown_write_without_effect,
        unknown_removal,
        slow_read,
        read_during_a_write,
        due_expiry,
        expiry_with_an_unacknowledged_heartbeat,
        announced_loss,
        failed_read_of_a_killed_process,
    ],
)
def test_permitted_behaviour_is_accepted(change: Callable[[History], None]) -> None:
    history = valid_history()
    change(history)
    assert check(history) == []


def test_loss_after_a_new_epoch_is_found() -> None:
    history = valid_history()
    announced_loss(history)
    history.calls.append(call("register", "c", 10, 1, "10"))
    assert {violation.rule for violation in check(history)} == {"lost"}

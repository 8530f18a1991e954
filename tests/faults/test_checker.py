"""The checker of the fault suite finds what is wrong, names it, and finds nothing in what is right."""

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
    Belief,
    Call,
    Follower,
    History,
    Kind,
    Message,
    Promises,
    Told,
)

UPDATED = "EVENT_TYPE_SERVICE_UPDATED"
BY_CLIENT = "EVENT_REASON_CLIENT_REQUEST"
TTL = 5.0


def call(kind: Kind, name: str, at: float, revision: int = 0, seen: str = "", **more: object) -> Call:
    """A call that took a tenth of a second and was answered."""
    version = seen if kind in ("register", "create", "update") else ""
    fields: dict[str, object] = {"version": version, "end": at + 0.1, "outcome": "ok", **more}
    process = fields.pop("process", 0)
    return Call("client", process, kind, name, at, revision=revision, seen=seen, **fields)  # type: ignore[arg-type]


def told(type_: str, name: str, version: str, revision: int, of: int = 0, reason: str = BY_CLIENT) -> Told:
    return Told(type_, reason, name, version, revision, of or revision, at=revision + 0.05)


def message(*events: Told, watcher: str = "one", revision: int = 0, epoch: str = "e", **more: bool) -> Message:
    newest = revision or (events[-1].revision if events else 0)
    return Message(watcher, 0, newest + 0.1, epoch, newest, list(events), **more)


CHANGES = (
    told(REGISTERED, "a", "1", 1),
    told(UPDATED, "a", "2", 2),
    told(REGISTERED, "b", "3", 3),
    told(GONE, "b", "3", 4, of=3),
    told(UPDATED, "a", "5", 5),
)


def good() -> History:
    """Revision n is written in second n and told to two watchers; one of them resumed, one started over."""
    final = {"a": ("5", 5)}
    snapshot = message(told(SNAPSHOT, "a", "2", 2), watcher="two", revision=2, fresh=True)
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
            call("list", "", 6, 5, states=final, min_revision=5),
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
        beliefs=[Belief(who, "e", 5, dict(final)) for who in ("Redis", "process 0", "process 1")],
    )


def test_it_finds_nothing_in_what_is_right() -> None:
    assert check(good()) == []


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = good()
    history.write(tmp_path / "history.jsonl")
    assert History.read(tmp_path / "history.jsonl") == history


# What is done to the good history, and the rule and words by which the checker tells it.


def hole(history: History) -> None:
    history.messages[4].events.pop(0)


def silent_jump(history: History) -> None:
    history.messages[5] = message(revision=5)


def repetition(history: History) -> None:
    history.messages[4].events.insert(1, CHANGES[1])


def another_state(history: History) -> None:
    history.messages[2].events[0] = told(SNAPSHOT, "a", "1", 1)


def two_changes_of_one_revision(history: History) -> None:
    history.messages[6].events[0] = told(REGISTERED, "c", "3", 3)


def impossible_change(history: History) -> None:
    for watched in history.messages:
        watched.events = [told(GONE, "c", "3", 4) if event is CHANGES[3] else event for event in watched.events]


def epoch_without_a_word(history: History) -> None:
    history.messages[5].epoch = "f"


def new_epoch(history: History) -> None:
    end = message(told(GONE, "a", "5", 0, of=5, reason=RESYNC), epoch="f")
    end.at, end.events[0].revision = 9, 0
    history.messages.append(end)


def follower_with_a_hole(history: History) -> None:
    history.followers[0].hole = "revision 4 was told after 2"


def follower_left_behind(history: History) -> None:
    history.followers[0].last = 4


def one_revision_for_two(history: History) -> None:
    history.calls[1].revision = 1


def revision_that_goes_back(history: History) -> None:
    history.calls[1].start, history.calls[1].end = 3.5, 3.6
    history.calls[2:3] = []


def told_to_nobody(history: History) -> None:
    history.calls.append(call("register", "c", 5.5, 5, "lost", process=1))


def removal_told_to_nobody(history: History) -> None:
    history.calls.append(call("unregister", "a", 5.5, 5, "5"))


def nobody_asked(history: History) -> None:
    history.calls.remove(history.calls[3])


def refused_and_done(history: History) -> None:
    history.calls[11].outcome = "refused"
    history.calls[11].code = "ABORTED REVISION_MISMATCH"


def done_twice(history: History) -> None:
    history.calls[11].version = "2"
    for watched in history.messages:
        watched.events = [replace(e, version="2") if e.version == "5" else e for e in watched.events]


def lost_in_the_end(history: History) -> None:
    # No watcher knows of it: this must be found without them.
    history.messages.clear()
    history.followers.clear()
    history.calls.append(call("register", "c", 5.5, 6, "6"))


def older_in_the_end(history: History) -> None:
    history.messages.clear()
    history.followers.clear()
    for belief in history.beliefs:
        belief.states = {"a": ("1", 1)}


def lost_for_a_heartbeat(history: History) -> None:
    history.calls[5].seen = ""


def two_beliefs(history: History) -> None:
    history.beliefs[2].states = {"a": ("2", 2)}


def stale_own_write(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 1, "1"


def stale_min_revision(history: History) -> None:
    history.calls[2].process, history.calls[2].min_revision = 1, 3
    history.calls[2].revision, history.calls[2].seen = 1, "1"


def stale_strong_read(history: History) -> None:
    history.calls[10].process = 1
    history.calls[10].revision, history.calls[10].states = 1, {"a": ("1", 1)}


def missing_after_a_read(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 0, ""


def read_of_what_never_was(history: History) -> None:
    history.calls[2].seen = "9"


def read_of_the_future(history: History) -> None:
    history.calls[2].revision, history.calls[2].seen = 5, "5"


def mixed_list(history: History) -> None:
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


def complaint(history: History) -> None:
    history.complaints.append("process 0 logged a bug")


def _expire(history: History, at: float) -> None:
    end = message(told(GONE, "a", "5", 6, of=5, reason=EXPIRED))
    end.at = end.events[0].at = at
    history.messages += [end, replace(end, watcher="two")]
    history.followers[0].last = 6
    for belief in history.beliefs:
        belief.revision, belief.states = 6, {}


WRONG: list[tuple[Callable[[History], None], str, str]] = [
    (hole, "watch", "a hole: revision 3"),
    (silent_jump, "watch", "without the events between"),
    (repetition, "watch", "a repetition: revision 2"),
    (another_state, "agreement", "a is ('1', 1) and ('2', 2)"),
    (two_changes_of_one_revision, "revisions", "revision 3 is told as"),
    (impossible_change, "watch", "c unregistered 3 (client_request) at revision 4, having nothing"),
    (epoch_without_a_word, "watch", "after epoch e without a word"),
    (new_epoch, "history", "a new epoch began"),
    (follower_with_a_hole, "followers", "revision 4 was told after 2"),
    (follower_left_behind, "followers", "up to revision 4 of 5"),
    (one_revision_for_two, "revisions", "two writes were answered with one revision"),
    (revision_that_goes_back, "revisions", "revisions went back"),
    (told_to_nobody, "acknowledged", "told to nobody"),
    (removal_told_to_nobody, "acknowledged", "told to nobody"),
    (nobody_asked, "changes", "nobody asked for"),
    (refused_and_done, "changes", "a refused write took place"),
    (done_twice, "changes", "one write took place twice"),
    (lost_in_the_end, "lost", "Redis has nothing, although"),
    (older_in_the_end, "lost", "process 0 has 1 of"),
    (lost_for_a_heartbeat, "lost", "a heartbeat found nothing"),
    (two_beliefs, "agreement", "to process 1: a is ('5', 5) and ('2', 2)"),
    (stale_own_write, "reads", "older than revision 2"),
    (stale_min_revision, "reads", "older than revision 3"),
    (stale_strong_read, "reads", "older than revision 3"),
    (missing_after_a_read, "reads", "older than revision 2"),
    (read_of_what_never_was, "reads", "what had never been"),
    (read_of_the_future, "reads", "what had never been"),
    (mixed_list, "reads", "not the state at revision 4"),
    (created_twice, "preconditions", "against its precondition"),
    (wrong_expectation, "preconditions", "against its precondition"),
    (wrongly_refused, "preconditions", "refused for what was not true"),
    (wrong_mismatch, "preconditions", "refused for what was not true"),
    (early_expiry, "leases", "1.10 s too early"),
    (expiry_of_a_long_lease, "leases", "long before"),
    (failed_read, "answers", "a read failed"),
    (internal_error, "answers", "INTERNAL"),
    (complaint, "complaint", "logged a bug"),
]


@pytest.mark.parametrize(("spoil", "rule", "words"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_it_finds_what_is_wrong(spoil: Callable[[History], None], rule: str, words: str) -> None:
    history = good()
    spoil(history)
    found = check(history)
    assert [violation for violation in found if violation.rule == rule and words in violation.what], found


def unknown_and_never_done(history: History) -> None:
    history.calls.append(call("register", "a", 5.2, outcome="unknown", end=float("inf"), version="never"))


def unknown_removal(history: History) -> None:
    """It may have happened before the update whose answer is unknown."""
    history.calls.append(call("unregister", "a", 4.9, outcome="unknown", end=float("inf")))


def slow_read(history: History) -> None:
    """A process that has answered nothing newer may be behind."""
    history.calls.append(Call("client", 1, "get", "b", 4.6, end=4.7, outcome="ok", revision=3, seen="3"))


def read_during_a_write(history: History) -> None:
    history.calls.append(call("get", "a", 1.95, 2, "2"))


def due_expiry(history: History) -> None:
    _expire(history, at=8.31)


def expiry_while_a_heartbeat_is_not_acknowledged(history: History) -> None:
    _expire(history, at=8.31)
    history.calls.append(call("heartbeat", "a", 5, outcome="unknown", end=float("inf")))


def lost_as_it_was_told(history: History) -> None:
    history.promises = Promises(may_lose=True, may_skip=True)
    new_epoch(history)
    for belief in history.beliefs:
        belief.epoch, belief.revision, belief.states = "f", 0, {}
    history.followers.clear()


def failed_read_of_a_dead_process(history: History) -> None:
    history.promises.reads_go_on = False
    failed_read(history)


@pytest.mark.parametrize(
    "change",
    [
        unknown_and_never_done,
        unknown_removal,
        slow_read,
        read_during_a_write,
        due_expiry,
        expiry_while_a_heartbeat_is_not_acknowledged,
        lost_as_it_was_told,
        failed_read_of_a_dead_process,
    ],
)
def test_it_does_not_cry_wolf(change: Callable[[History], None]) -> None:
    history = good()
    change(history)
    assert check(history) == []


def test_what_is_lost_after_the_new_epoch_is_lost_all_the_same() -> None:
    history = good()
    lost_as_it_was_told(history)
    history.calls.append(call("register", "c", 10, 1, "10"))
    assert {violation.rule for violation in check(history)} == {"lost"}

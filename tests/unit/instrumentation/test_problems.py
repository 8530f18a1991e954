"""``Problems``: begin, change and end of a problem."""

import pytest
from structlog.testing import capture_logs

from registry_server.errors import ConfigurationError
from registry_server.instrumentation.problems import Problems

POLICY = "store_maxmemory_policy"


def test_problem_is_logged_when_it_begins_changes_and_ends() -> None:
    now = 0.0
    problems = Problems(lambda: now)
    with capture_logs() as logs:
        for text in ("allkeys-lru", "allkeys-lru", "volatile-lru"):
            problems.report(POLICY, text)
            now += 1
        problems.report(POLICY, "after a second")
        now += 0.5
        problems.report(POLICY, "changes too often to be logged")
        assert problems.active == {POLICY: "changes too often to be logged"}
        problems.resolve(POLICY)
        problems.resolve(POLICY)
    assert problems.active == {}
    assert [(log["log_level"], log.get("text")) for log in logs] == [
        ("warning", "allkeys-lru"),
        ("warning", "volatile-lru"),
        ("warning", "after a second"),
        ("info", None),
    ]
    assert {log["problem"] for log in logs} == {POLICY}


def test_problem_with_a_duration_ends_unless_it_is_reported_again() -> None:
    now = 0.0
    problems = Problems(lambda: now)
    problems.report("store_commit", "refused", seconds=60)
    problems.report("other", "stays")
    now = 59
    problems.report("store_commit", "refused", seconds=60)
    now = 118
    assert set(problems.active) == {"store_commit", "other"}
    now = 119
    assert set(problems.active) == {"other"}


async def test_failed_task_is_restarted_and_its_failure_is_logged_once() -> None:
    problems = Problems()
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ExceptionGroup("several", [ValueError("a secret")])

    with capture_logs() as logs:
        await problems.keep_running("sweeper", work)
    assert runs == 3
    assert dict(problems.active) == {"task_sweeper": "sweeper failed: unexpected ValueError; see the log"}
    (error,) = [log for log in logs if log["log_level"] == "error"]
    assert error["event"] == "background task failed"
    assert isinstance(error["exc_info"], ValueError), "without the group of its tasks"


async def test_task_that_cannot_work_with_the_configuration_ends() -> None:
    async def work() -> None:
        raise ConfigurationError("redis: EVALSHA is not permitted")

    with pytest.raises(ConfigurationError):
        await Problems().keep_running("follower", work)

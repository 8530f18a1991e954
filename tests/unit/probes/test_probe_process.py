import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings, LogSettings
from registry_server.model.networks import DENIED_NETWORKS, Network
from registry_server.probes import OutcomeKind, Plan, ProbeProcess, Result, process
from registry_server.probes.process import ResultListener
from tests.support.endpoints import answer, listening, respond
from tests.support.processes import children_of, command_of

pytestmark = pytest.mark.slow

TIMEOUT = 20.0


def plan(port: int, **service: object) -> Plan:
    defaults = HealthCheckSettings(timeout_ms=1_000)
    return Plan.of(Service(name="a", endpoint=f"http://127.0.0.1:{port}", **service), defaults)  # type: ignore[arg-type]


def agent() -> AbstractAsyncContextManager[int]:
    return listening(respond(answer(b'{"load": 1}')), backlog=1_000)


def silent() -> AbstractAsyncContextManager[int]:
    """Takes requests and never answers."""
    return listening(respond(after=3_600))


def worker() -> int:
    """Process id of the one worker of this process."""
    (found,) = (pid for pid in children_of(os.getpid()) if "probes.worker" in command_of(pid))
    return found


@asynccontextmanager
async def prober(
    denied: tuple[Network, ...] = DENIED_NETWORKS, on_result: ResultListener = lambda _: None
) -> AsyncIterator[ProbeProcess]:
    subject = ProbeProcess((), denied, concurrency=100, logs=LogSettings())
    subject.start(on_result)
    try:
        yield subject
    finally:
        await subject.close()


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


async def test_an_outcome_comes_back_whole() -> None:
    async with agent() as port, prober() as subject:
        outcome = await subject.probe(plan(port))
        assert (outcome.kind, outcome.error) == (OutcomeKind.OK, "")
        assert outcome.details is not None
        assert outcome.details["load"] == 1
        assert 0 < outcome.response_time < 1
        assert (await subject.probe(plan(1))).error == "connection refused"


async def test_a_thousand_probes_at_once_are_all_answered() -> None:
    async with agent() as port, prober() as subject:
        outcomes = await asyncio.gather(*(subject.probe(plan(port)._replace(timeout=60.0)) for _ in range(1_000)))
    assert {(outcome.kind, outcome.error) for outcome in outcomes} == {(OutcomeKind.OK, "")}


async def test_the_network_policy_holds_in_the_worker() -> None:
    async with agent() as port, prober(denied=(*DENIED_NETWORKS, *_loopback())) as subject:
        outcome = await subject.probe(plan(port))
    assert (outcome.kind, outcome.error) == (OutcomeKind.FAILED, "address 127.0.0.1 is not allowed")


async def test_the_worker_imports_nothing_from_the_directory_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('not ours')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    async with agent() as port, prober() as subject, asyncio.timeout(TIMEOUT):
        assert (await subject.probe(plan(port))).kind is OutcomeKind.OK


async def test_a_worker_that_is_killed_fails_nobody_and_is_replaced() -> None:
    async with silent() as slow, agent() as port, prober() as subject:
        await subject.probe(plan(port))
        waiting = asyncio.create_task(subject.probe(plan(slow)._replace(timeout=60.0)))
        await asyncio.sleep(0)
        first = worker()
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT):
            outcome = await waiting
            assert (outcome.kind, outcome.error) == (
                OutcomeKind.INCONCLUSIVE,
                "the registry lost the answer to its probe",
            )
            assert (await subject.probe(plan(port))).kind is OutcomeKind.OK
        assert worker() != first


async def test_a_worker_that_stands_still_fails_nobody_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOST_AFTER", 0.2)
    async with agent() as port, prober() as subject:
        await subject.probe(plan(port))
        first = worker()
        os.kill(first, signal.SIGSTOP)
        monkeypatch.setattr(process, "_LOOK_EVERY", 0.05)
        async with asyncio.timeout(TIMEOUT):
            assert (await subject.probe(plan(port)._replace(timeout=0.1))).kind is OutcomeKind.INCONCLUSIVE
            while (await subject.probe(plan(port))).kind is not OutcomeKind.OK:
                pass
        assert worker() != first


async def test_a_timeout_that_a_standstill_of_the_worker_made_proves_nothing() -> None:
    async with silent() as slow, agent() as port, prober() as subject:
        await subject.probe(plan(port))
        waiting = asyncio.create_task(subject.probe(plan(slow)._replace(timeout=0.5)))
        await asyncio.sleep(0.1)
        os.kill(worker(), signal.SIGSTOP)
        await asyncio.sleep(1.2)
        os.kill(worker(), signal.SIGCONT)
        async with asyncio.timeout(TIMEOUT):
            assert (await waiting).kind is OutcomeKind.INCONCLUSIVE


async def test_the_worker_outlives_the_signals_of_a_terminal_and_ends_with_the_prober() -> None:
    async with agent() as port, prober() as subject:
        await subject.probe(plan(port))
        pid = worker()
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert (await subject.probe(plan(port))).kind is OutcomeKind.OK
        assert worker() == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# Rounds.


class Seen:
    """What was told."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def __call__(self, result: Result) -> None:
        self.results.append(result)

    def of(self, name: str) -> list[Result]:
        return [result for result in self.results if result.name == name]


async def test_what_is_assigned_is_probed_at_its_interval_until_it_is_dropped() -> None:
    seen = Seen()
    async with agent() as port, prober(on_result=seen) as subject:
        began = time.monotonic()
        subject.assign("a", plan(port)._replace(interval=0.1), began)  # before the worker is ready
        await eventually(lambda: len(seen.of("a")) >= 3)
        subject.assign("b", plan(port)._replace(interval=0.1), time.monotonic())
        await eventually(lambda: len(seen.of("b")) >= 3)
        subject.drop("a")
        subject.drop("a")
        dropped = len(seen.of("a"))
        await eventually(lambda: len(seen.of("b")) >= 10)
    assert len(seen.of("a")) == dropped
    for result in seen.of("b"):
        assert result.outcome.kind is OutcomeKind.OK
        assert result.outcome.details is not None
        assert result.plan == plan(port)._replace(interval=0.1)
        assert began < result.began < time.monotonic()
        assert result.late is not None


async def test_the_result_of_what_is_probed_otherwise_by_now_is_told_without_its_name() -> None:
    seen = Seen()
    async with silent() as slow, agent() as port, prober(on_result=seen) as subject:
        subject.assign("a", plan(slow)._replace(timeout=0.5), time.monotonic())
        await subject.probe(plan(port))  # it is under way by now
        await asyncio.sleep(0.1)
        subject.assign("a", plan(port)._replace(interval=3600), time.monotonic())
        await eventually(lambda: len(seen.results) == 2)
    assert Counter((result.name, result.outcome.kind) for result in seen.results) == {
        ("a", OutcomeKind.OK): 1,
        (None, OutcomeKind.FAILED): 1,
    }


async def test_a_new_worker_probes_all_that_the_old_one_did_within_an_interval() -> None:
    seen = Seen()
    names = {f"s{i}" for i in range(500)}  # more than are handed over at once
    async with agent() as port, prober(on_result=seen) as subject:
        for name in names:
            subject.assign(name, plan(port)._replace(interval=2.0), time.monotonic())
        await eventually(lambda: {result.name for result in seen.results} == names)
        os.kill(worker(), signal.SIGKILL)
        await asyncio.sleep(0.1)
        subject.drop("s0")
        subject.assign("new", plan(port)._replace(interval=2.0), time.monotonic())
        seen.results.clear()
        await eventually(lambda: {result.name for result in seen.results} >= names - {"s0"} | {"new"})
    assert {result.outcome.kind for result in seen.results} == {OutcomeKind.OK}
    assert not seen.of("s0")


@pytest.mark.parametrize("why", ["it does not start", "it stands still"])
async def test_while_no_worker_speaks_each_service_hears_when_it_is_due_that_nothing_is_known(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen()
    async with agent() as port, prober(on_result=seen) as subject:
        await subject.probe(plan(port))
        first = worker()
        if why == "it stands still":
            monkeypatch.setattr(process, "_DEAF", 1_000_000)
            os.kill(first, signal.SIGSTOP)
        else:
            monkeypatch.setattr(process, "_WORKER", "registry_server.no_such_module")
            os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        subject.assign("often", plan(port)._replace(interval=0.3), began)
        subject.assign("rarely", plan(port)._replace(interval=3600), began)
        monkeypatch.setattr(process, "_LOOK_EVERY", 0.05)
        await eventually(lambda: len(seen.of("often")) >= 5)
        took = time.monotonic() - began
        if why == "it stands still":
            os.kill(first, signal.SIGCONT)
            await eventually(lambda: seen.results[-1].outcome.kind is OutcomeKind.OK)
    lost = [result for result in seen.results if result.outcome.kind is OutcomeKind.INCONCLUSIVE]
    assert {result.name for result in lost} == {"often"}
    assert {result.late for result in lost} == {None}
    assert len(lost) <= took / 0.3 + 2, "no more often than its interval"


def _loopback() -> tuple[Network, ...]:
    return HealthCheckSettings(denied_networks="127.0.0.0/8").denied_networks  # type: ignore[arg-type]

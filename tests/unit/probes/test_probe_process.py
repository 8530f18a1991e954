"""The probe process: probes on demand, periodic probes, and the replacement of a worker."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings
from registry_server.model.networks import Network
from registry_server.probes import OutcomeKind, Plan, ProbeProcess, Result, WorkerSetup
from registry_server.probes.process import ResultListener
from registry_server.runtime.tasks import cancel
from tests.support.endpoints import answer, listening, respond
from tests.support.processes import children_of, command_of, runs
from tests.support.waiting import until

pytestmark = pytest.mark.slow

TIMEOUT = 20.0


def plan(port: int, **service: object) -> Plan:
    defaults = HealthCheckSettings(timeout_ms=10_000)  # long enough for a busy machine
    return Plan.of(Service(name="a", endpoint=f"http://127.0.0.1:{port}", **service), defaults)  # type: ignore[arg-type]


def agent() -> AbstractAsyncContextManager[int]:
    return listening(respond(answer(b'{"load": 1}')), backlog=1_000)


class SilentAgent(NamedTuple):
    """An agent that answers no request."""

    port: int
    requested: asyncio.Event
    """Set by the first request."""
    closed: asyncio.Event
    """Set when a client closes its connection."""


@asynccontextmanager
async def silent_agent() -> AsyncIterator[SilentAgent]:
    requested, closed = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        requested.set()
        await reader.read()
        closed.set()

    async with listening(handle) as port:
        yield SilentAgent(port, requested, closed)


def worker_pids() -> list[int]:
    """Return the process ids of the workers of this process."""
    return [pid for pid in children_of(os.getpid()) if "probes.worker" in command_of(pid)]


def worker_pid() -> int:
    """Return the process id of the only worker of this process."""
    (found,) = worker_pids()
    return found


@asynccontextmanager
async def probe_process(
    denied: tuple[Network, ...] = (),
    on_result: ResultListener = lambda _: None,
    concurrency: int = 1_000,
    **options: Any,
) -> AsyncIterator[ProbeProcess]:
    subject = ProbeProcess(WorkerSetup((), denied, concurrency, "info", "json"), **options)
    running = asyncio.create_task(subject.run(on_result))
    try:
        yield subject
    finally:
        await cancel([running])


async def test_outcome_is_returned_complete() -> None:
    async with agent() as port, probe_process() as subject:
        started = time.monotonic()
        outcome = await subject.probe_now(plan(port))
        assert (outcome.kind, outcome.error) == (OutcomeKind.OK, "")
        assert outcome.details is not None
        assert outcome.details["load"] == 1
        assert 0 < outcome.response_time < time.monotonic() - started
        assert (await subject.probe_now(plan(1))).error == "connection refused"


async def test_a_thousand_concurrent_probes_are_all_answered() -> None:
    async with agent() as port, probe_process() as subject:
        outcomes = await asyncio.gather(*(subject.probe_now(plan(port)._replace(timeout=60.0)) for _ in range(1_000)))
    assert {(outcome.kind, outcome.error) for outcome in outcomes} == {(OutcomeKind.OK, "")}


async def test_worker_applies_the_denied_networks() -> None:
    async with agent() as port, probe_process(denied=_loopback()) as subject:
        outcome = await subject.probe_now(plan(port))
    assert (outcome.kind, outcome.error) == (OutcomeKind.FAILED, "address 127.0.0.1 is not allowed")


async def test_worker_imports_nothing_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit('not ours')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    async with agent() as port, probe_process() as subject, asyncio.timeout(TIMEOUT):
        assert (await subject.probe_now(plan(port))).kind is OutcomeKind.OK


async def test_killed_worker_is_replaced_and_its_probes_are_inconclusive() -> None:
    async with silent_agent() as slow, agent() as port, probe_process() as subject:
        await subject.probe_now(plan(port))
        waiting = asyncio.create_task(subject.probe_now(plan(slow.port)._replace(timeout=60.0)))
        first = worker_pid()
        async with asyncio.timeout(TIMEOUT):
            await slow.requested.wait()
            os.kill(first, signal.SIGKILL)
            outcome = await waiting
            assert (outcome.kind, outcome.error) == (
                OutcomeKind.INCONCLUSIVE,
                "the registry lost the answer to its probe",
            )
            assert (await subject.probe_now(plan(port))).kind is OutcomeKind.OK
        assert first not in worker_pids()


async def test_stopped_worker_is_replaced_and_its_probes_are_inconclusive() -> None:
    options: dict[str, Any] = {"check_interval_seconds": 0.05, "dead_checks": 60}
    async with agent() as port, probe_process(**options) as subject:
        await subject.probe_now(plan(port))
        first = worker_pid()
        os.kill(first, signal.SIGSTOP)
        async with asyncio.timeout(TIMEOUT):
            assert (await subject.probe_now(plan(port)._replace(timeout=0.1))).kind is OutcomeKind.INCONCLUSIVE
            while (await subject.probe_now(plan(port))).kind is not OutcomeKind.OK:
                pass
        assert first not in worker_pids()


async def test_timeout_during_a_pause_of_the_worker_is_inconclusive() -> None:
    async with silent_agent() as slow, agent() as port, probe_process() as subject:
        await subject.probe_now(plan(port))
        waiting = asyncio.create_task(subject.probe_now(plan(slow.port)._replace(timeout=2.0)))
        async with asyncio.timeout(TIMEOUT):
            await slow.requested.wait()
            os.kill(worker_pid(), signal.SIGSTOP)
            await asyncio.sleep(2.2)
            os.kill(worker_pid(), signal.SIGCONT)
            assert (await waiting).kind is OutcomeKind.INCONCLUSIVE


async def test_worker_ignores_terminal_signals_and_exits_on_close() -> None:
    async with agent() as port, probe_process() as subject:
        await subject.probe_now(plan(port))
        pid = worker_pid()
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert (await subject.probe_now(plan(port))).kind is OutcomeKind.OK
        assert worker_pid() == pid
    await until(lambda: not runs(pid))


# Periodic probes.


class ResultRecorder:
    """A result listener that records the results."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def __call__(self, result: Result) -> None:
        self.results.append(result)

    def of(self, name: str) -> list[Result]:
        return [result for result in self.results if result.name == name]


async def test_assigned_service_is_probed_at_its_interval_until_dropped() -> None:
    recorder = ResultRecorder()
    async with agent() as port, probe_process(on_result=recorder) as subject:
        started = time.monotonic()
        subject.assign_service("a", plan(port)._replace(interval=0.1), started)  # before the worker is ready
        await until(lambda: len(recorder.of("a")) >= 3)
        subject.assign_service("b", plan(port)._replace(interval=0.1), time.monotonic())
        await until(lambda: len(recorder.of("b")) >= 3)
        subject.drop_service("a")
        subject.drop_service("a")
        dropped = len(recorder.of("a"))
        await until(lambda: len(recorder.of("b")) >= 10)
    assert len(recorder.of("a")) == dropped
    for result in recorder.of("b"):
        assert result.outcome.kind is OutcomeKind.OK
        assert result.outcome.details is not None
        assert result.plan == plan(port)._replace(interval=0.1)
        assert started < result.started < time.monotonic()
        assert result.late is not None


async def test_probe_of_a_replaced_plan_is_cancelled() -> None:
    recorder = ResultRecorder()
    async with silent_agent() as slow, agent() as port, probe_process(on_result=recorder) as subject:
        subject.assign_service("a", plan(slow.port)._replace(timeout=60.0), time.monotonic())
        await until(slow.requested.is_set)
        subject.assign_service("a", plan(port)._replace(interval=3600), time.monotonic())
        await until(slow.closed.is_set)
        await until(lambda: len(recorder.results) == 1)
    assert [(result.name, result.plan) for result in recorder.results] == [("a", plan(port)._replace(interval=3600))]


async def test_cancelled_check_on_demand_cancels_the_probe() -> None:
    async with silent_agent() as slow, agent() as port, probe_process() as subject:
        waiting = asyncio.create_task(subject.probe_now(plan(slow.port)._replace(timeout=60.0)))
        await until(slow.requested.is_set)
        await cancel([waiting])
        await until(slow.closed.is_set)
        unsent = asyncio.create_task(subject.probe_now(plan(port)))
        await asyncio.sleep(0)
        await cancel([unsent])  # both commands are in one message
        assert (await subject.probe_now(plan(port))).kind is OutcomeKind.OK


async def test_slow_probes_of_an_owner_delay_no_other_owner() -> None:
    recorder = ResultRecorder()
    probing = probe_process(on_result=recorder, concurrency=20)
    async with silent_agent() as slow, agent() as port, probing as subject:
        greedy = plan(slow.port)._replace(interval=300.0, timeout=300.0, owner="greedy")
        for i in range(40):
            subject.assign_service(f"slow{i}", greedy, time.monotonic())
        await until(lambda: recorder.results)
        subject.assign_service("fast", plan(port)._replace(interval=1.0, owner="other"), time.monotonic())
        await until(lambda: len(recorder.of("fast")) >= 3)
    assert {result.outcome.kind for result in recorder.of("fast")} == {OutcomeKind.OK}
    skipped = [result for result in recorder.results if result.name != "fast"]
    assert {(result.outcome.kind, result.outcome.error) for result in skipped} == {
        (OutcomeKind.INCONCLUSIVE, "the registry has no free slot for this probe")
    }


async def test_new_worker_probes_all_services_within_an_interval() -> None:
    recorder = ResultRecorder()
    names = {f"s{i}" for i in range(500)}  # more than one slice
    # On a busy machine, the start of a worker may take longer than three checks of one second.
    async with agent() as port, probe_process(on_result=recorder, check_interval_seconds=10.0) as subject:
        for name in names:
            subject.assign_service(name, plan(port)._replace(interval=2.0), time.monotonic())
        await until(lambda: {result.name for result in recorder.results} == names)
        os.kill(worker_pid(), signal.SIGKILL)
        await asyncio.sleep(0.1)
        subject.drop_service("s0")
        subject.assign_service("new", plan(port)._replace(interval=2.0), time.monotonic())
        recorder.results.clear()
        await until(lambda: {result.name for result in recorder.results} >= names - {"s0"} | {"new"})
    assert {result.outcome.kind for result in recorder.results} == {OutcomeKind.OK}
    assert not recorder.of("s0")


@pytest.mark.parametrize("fault", ["does not start", "is stopped"])
async def test_due_services_get_inconclusive_results_without_a_worker(fault: str) -> None:
    recorder = ResultRecorder()
    options: dict[str, Any] = {"check_interval_seconds": 0.05, "dead_checks": 1_000_000}
    async with agent() as port, probe_process(on_result=recorder, **options) as subject:
        await subject.probe_now(plan(port))
        first = worker_pid()
        if fault == "is stopped":
            os.kill(first, signal.SIGSTOP)
        else:
            subject._worker_module = "registry_server.no_such_module"
            os.kill(first, signal.SIGKILL)
        started = time.monotonic()
        subject.assign_service("often", plan(port)._replace(interval=0.3), started)
        subject.assign_service("rarely", plan(port)._replace(interval=3600), started)
        await until(lambda: len(recorder.of("often")) >= 5)
        if fault == "is stopped":
            os.kill(first, signal.SIGCONT)
            await until(lambda: recorder.results[-1].outcome.kind is OutcomeKind.OK)
    elapsed = time.monotonic() - started
    lost = [result for result in recorder.results if result.outcome.kind is OutcomeKind.INCONCLUSIVE]
    assert {result.name for result in lost} == {"often"}
    assert {result.late for result in lost} == {None}
    assert len(lost) <= elapsed / 0.3 + 2, "at most once per interval"


def _loopback() -> tuple[Network, ...]:
    return HealthCheckSettings(denied_networks="127.0.0.0/8").denied_networks  # type: ignore[arg-type]

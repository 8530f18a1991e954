import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import DENIED_NETWORKS, HealthCheckSettings, LogSettings, Network
from registry_server.health.probes import OutcomeKind, Plan, ProbeProcess, process
from tests.support.endpoints import answer, listening, says
from tests.support.processes import children_of, command_of

PATIENCE = 20.0


def plan(port: int, **service: object) -> Plan:
    defaults = HealthCheckSettings(timeout_ms=1_000)
    return Plan.of(Service(name="a", endpoint=f"http://127.0.0.1:{port}", **service), defaults)  # type: ignore[arg-type]


def agent() -> AbstractAsyncContextManager[int]:
    return listening(says(answer(b'{"load": 1}')), backlog=1_000)


def silent() -> AbstractAsyncContextManager[int]:
    """Takes requests and never answers."""
    return listening(says(after=3_600))


def worker() -> int:
    """Process id of the one worker of this process."""
    (found,) = (pid for pid in children_of(os.getpid()) if "probe_worker" in command_of(pid))
    return found


def prober(denied: tuple[Network, ...] = DENIED_NETWORKS) -> ProbeProcess:
    return ProbeProcess((), denied, LogSettings())


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
    async with agent() as port, prober() as subject, asyncio.timeout(PATIENCE):
        assert (await subject.probe(plan(port))).kind is OutcomeKind.OK


async def test_a_worker_that_is_killed_fails_nobody_and_is_replaced() -> None:
    async with silent() as slow, agent() as port, prober() as subject:
        await subject.probe(plan(port))
        waiting = asyncio.create_task(subject.probe(plan(slow)._replace(timeout=60.0)))
        await asyncio.sleep(0)
        first = worker()
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            outcome = await waiting
            assert (outcome.kind, outcome.error) == (
                OutcomeKind.INCONCLUSIVE,
                "the registry lost the answer to its probe",
            )
            assert (await subject.probe(plan(port))).kind is OutcomeKind.OK
        assert worker() != first


async def test_a_worker_that_stands_still_fails_nobody_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOST_AFTER", 0.2)
    monkeypatch.setattr(process, "_DEAF_AFTER", 0.1)
    async with agent() as port, prober() as subject:
        await subject.probe(plan(port))
        first = worker()
        os.kill(first, signal.SIGSTOP)
        async with asyncio.timeout(PATIENCE):
            assert (await subject.probe(plan(port)._replace(timeout=0.1))).kind is OutcomeKind.INCONCLUSIVE
            assert (await subject.probe(plan(port))).kind is OutcomeKind.OK
        assert worker() != first


async def test_a_timeout_that_a_standstill_of_the_worker_made_proves_nothing() -> None:
    async with silent() as slow, agent() as port, prober() as subject:
        await subject.probe(plan(port))
        waiting = asyncio.create_task(subject.probe(plan(slow)._replace(timeout=0.5)))
        await asyncio.sleep(0.1)
        os.kill(worker(), signal.SIGSTOP)
        await asyncio.sleep(1.2)
        os.kill(worker(), signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
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


def _loopback() -> tuple[Network, ...]:
    return HealthCheckSettings(denied_networks="127.0.0.0/8").denied_networks  # type: ignore[arg-type]

"""Connections of probes: TCP, name resolution and denied addresses."""

import asyncio
import socket
from contextlib import ExitStack

import pytest

from registry_server.probes import Outcome
from registry_server.probes.outcome import format_seconds
from registry_server.probes.prober import Prober
from registry_server.runtime.fair_slots import FairSlots
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import answer, black_hole, closed_port, grpc_server, listening, respond
from tests.unit.probes.probe_tables import serving
from tests.unit.probes.probing import (
    FAILED,
    INCONCLUSIVE,
    OK,
    SHORT_TIMEOUT,
    TIMED_OUT,
    hanging_dns,
    plan,
    resolve_names,
    send_probe,
)


@pytest.mark.parametrize("scheme", ["tcp", "ws", "wss"])
def test_tcp_probe_connects_and_closes(scheme: str, runner: asyncio.Runner) -> None:
    received: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async def run() -> Outcome:
        async with listening(handle) as port:
            outcome = await send_probe(f"{scheme}://127.0.0.1:{port}")
            while not received:
                await asyncio.sleep(0.01)
            return outcome

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error, outcome.details) == (OK, "", None)
    assert received == [b""]


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_closed_port_is_reported_as_refused(scheme: str, runner: asyncio.Runner) -> None:
    with closed_port() as port:
        outcome = runner.run(send_probe(f"{scheme}://127.0.0.1:{port}"))
    assert (outcome.kind, outcome.error) == (FAILED, "connection refused")


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_probe_of_a_silent_address_times_out(scheme: str, runner: asyncio.Runner) -> None:
    with black_hole() as port:
        outcome = runner.run(send_probe(f"{scheme}://127.0.0.1:{port}", {"timeout": SHORT_TIMEOUT}))
    assert (outcome.kind, outcome.error) == (FAILED, TIMED_OUT)
    assert 0.075 < outcome.response_time < 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "10 ms"), (0.0255, "25.5 ms"), (0.2, "200 ms"), (1, "1 s"), (2.5, "2.5 s"), (300, "300 s")],
)
def test_durations_are_formatted_in_a_suitable_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc", "tcp"])
@pytest.mark.parametrize("first", ["::1", "127.0.0.2"], ids=["refused", "no answer"])
def test_next_address_of_a_name_is_tried_if_the_first_fails(
    scheme: str, first: str, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> Outcome:
        resolve_names(monkeypatch, {"agent.test": [first, "127.0.0.1"]})
        target = grpc_server(serving) if scheme == "grpc" else listening(respond(answer()))
        async with target as port:
            with ExitStack() as stack:
                if first == "127.0.0.2":
                    try:
                        stack.enter_context(black_hole(first, port))
                    except OSError:
                        pytest.skip("this system has only one loopback address")
                return await send_probe(f"{scheme}://agent.test:{port}", {"timeout": "1s"})

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error) == (OK, "")


# Name resolution and denied addresses.

SCHEMES = pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp", "ws"])


@SCHEMES
@pytest.mark.parametrize("host", ["169.254.169.254", "0.0.0.0", "[::]", "[fe80::1]", "[::ffff:a9fe:a9fe]"])
async def test_denied_address_is_not_connected_to(scheme: str, host: str) -> None:
    outcome = await send_probe(f"{scheme}://{host}:80")
    assert (outcome.kind, outcome.error) == (FAILED, f"address {host.strip('[]')} is not allowed")
    assert outcome.response_time < 1


@SCHEMES
async def test_name_of_denied_addresses_is_not_connected_to(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_names(monkeypatch, {"agent.test": ["169.254.169.254", "fe80::1"]})
    outcome = await send_probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, "host name has no allowed address")


@SCHEMES
async def test_name_is_resolved_once_per_probe(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second look-up could return another address (DNS rebinding)."""
    lookups = resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    with closed_port() as port:
        outcome = await send_probe(f"{scheme}://agent.test:{port}")
    assert outcome.error == "connection refused"
    assert lookups == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "host name could not be resolved"),
    ],
)
async def test_unresolvable_name_fails_the_probe(
    scheme: str, fault: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_names(monkeypatch, {"agent.test": fault})
    outcome = await send_probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, text)


@SCHEMES
async def test_probe_times_out_while_dns_hangs(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as lookups:
        outcome = await send_probe(f"{scheme}://agent.test:80", {"timeout": "0.05s"})
    assert (outcome.kind, outcome.error) == (FAILED, "no answer within 50 ms")
    assert lookups == ["agent.test"]


async def test_hanging_dns_blocks_no_other_probe_and_no_thread_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hanging_dns(monkeypatch):
        async with Prober(EgressPolicy()) as prober, listening(respond(answer())) as port:
            hanging = [
                asyncio.create_task(prober.send_probe(plan(f"http://agent-{i}.test:80", {"timeout": "5s"})))
                for i in range(100)
            ]
            await asyncio.sleep(0)
            assert (await prober.send_probe(plan(f"http://127.0.0.1:{port}"))).kind is OK
            assert await asyncio.to_thread(int, "7") == 7
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)


async def test_hanging_look_ups_of_an_owner_delay_no_other_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as lookups:
        async with Prober(EgressPolicy()) as prober, listening(respond(answer())) as port:
            slow = [plan(f"http://agent-{i}.test:80", {"timeout": "0.3s"})._replace(owner="greedy") for i in range(300)]
            outcomes = await asyncio.gather(*(prober.send_probe(each) for each in slow))
            sent = [outcome for outcome in outcomes if outcome.error == "no answer within 300 ms"]
            assert {outcome.kind for outcome in sent} == {FAILED}
            assert len(sent) == len(lookups) == 56
            rest = {(outcome.kind, outcome.error) for outcome in outcomes if outcome not in sent}
            assert rest == {(INCONCLUSIVE, "the registry has no free slot for this probe")}
            # The threads of the owner are still in use, although no probe waits for them.
            for scheme, owner, kind in (("http", "other", OK), ("tcp", "other", OK), ("tcp", "greedy", INCONCLUSIVE)):
                by_name = plan(f"{scheme}://localhost:{port}", {"timeout": "0.3s"})._replace(owner=owner)
                assert (await prober.send_probe(by_name)).kind is kind
            by_address = plan(f"tcp://127.0.0.1:{port}")._replace(owner="greedy")
            assert (await prober.send_probe(by_address)).kind is OK


@pytest.mark.slow
async def test_time_in_which_a_look_up_waits_for_a_thread_does_not_count() -> None:
    policy = EgressPolicy()
    policy._lookups._slots = slots = FairSlots(1)
    async with Prober(policy) as prober, listening(respond(answer())) as port:
        await slots.acquire("other")
        by_name = plan(f"http://localhost:{port}", {"timeout": "5s", "degraded_after": "1s"})
        waiting = asyncio.create_task(prober.send_probe(by_name))
        await asyncio.sleep(1.2)
        slots.release("other")
        outcome = await waiting
        assert outcome.kind is OK
        assert outcome.response_time < 1


async def test_cancelled_probe_leaves_the_queue_of_look_ups() -> None:
    policy = EgressPolicy()
    policy._lookups._slots = slots = FairSlots(1)
    async with Prober(policy) as prober:
        for scheme in ("http", "grpc", "tcp"):
            await slots.acquire("")
            waiting = asyncio.create_task(prober.send_probe(plan(f"{scheme}://localhost:1")))
            while not slots.waiting(""):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert not slots.waiting("")
            slots.release("")


async def test_prober_closes_immediately_while_dns_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as lookups:
        async with asyncio.timeout(5), Prober(EgressPolicy()) as prober:
            hanging = asyncio.create_task(prober.send_probe(plan("tcp://agent.test:80", {"timeout": "0.05s"})))
            assert (await hanging).error == "no answer within 50 ms"
    assert lookups == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize("endpoint", ["", "://", "://:80", "://127.0.0.1:http"])
async def test_probe_of_an_invalid_endpoint_fails(scheme: str, endpoint: str) -> None:
    outcome = await send_probe(scheme + endpoint)
    assert (outcome.kind, outcome.error) == (FAILED, "the endpoint is not a URL with a host")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_proxy_variables_are_ignored(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as dead:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        target = grpc_server(serving) if scheme == "grpc" else listening(respond(answer()))
        async with target as port:
            assert (await send_probe(f"{scheme}://127.0.0.1:{port}")).kind is OK

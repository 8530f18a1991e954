"""Connections of probes: TCP, names, addresses that may not be reached."""

import asyncio
import socket
from contextlib import ExitStack

import pytest

from registry_server.probes import Outcome, Prober
from registry_server.probes.outcome import span
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import answer, black_hole, closed_port, grpc_server, listening, respond
from tests.unit.probes.probe_tables import serving
from tests.unit.probes.probing import FAILED, HANGS, LONG, OK, hanging_dns, names, plan, probe


@pytest.mark.parametrize("scheme", ["tcp", "ws", "wss"])
def test_tcp_connects_and_closes(scheme: str, runner: asyncio.Runner) -> None:
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        got.append(await reader.read())

    async def run() -> Outcome:
        async with listening(handle) as port:
            outcome = await probe(f"{scheme}://127.0.0.1:{port}")
            while not got:
                await asyncio.sleep(0.01)
            return outcome

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error, outcome.details) == (OK, "", None)
    assert got == [b""]


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_a_closed_port_refuses(scheme: str, runner: asyncio.Runner) -> None:
    with closed_port() as port:
        outcome = runner.run(probe(f"{scheme}://127.0.0.1:{port}"))
    assert (outcome.kind, outcome.error) == (FAILED, "connection refused")


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_a_black_hole_costs_the_timeout(scheme: str, runner: asyncio.Runner) -> None:
    with black_hole() as port:
        outcome = runner.run(probe(f"{scheme}://127.0.0.1:{port}", {"timeout": LONG}))
    assert (outcome.kind, outcome.error) == (FAILED, HANGS)
    assert 0.15 < outcome.response_time < 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "10 ms"), (0.0255, "25.5 ms"), (0.2, "200 ms"), (1, "1 s"), (2.5, "2.5 s"), (300, "300 s")],
)
def test_times_are_told_in_a_unit_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "grpc", "tcp"])
@pytest.mark.parametrize("first", ["::1", "127.0.0.2"], ids=["refuses", "does not answer"])
def test_a_name_is_probed_at_its_next_address_if_the_first_is_dead(
    scheme: str, first: str, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> Outcome:
        names(monkeypatch, {"agent.test": [first, "127.0.0.1"]})
        target = grpc_server(serving) if scheme == "grpc" else listening(respond(answer()))
        async with target as port:
            with ExitStack() as stack:
                if first == "127.0.0.2":
                    try:
                        stack.enter_context(black_hole(first, port))
                    except OSError:
                        pytest.skip("this system has one loopback address only")
                return await probe(f"{scheme}://agent.test:{port}", {"timeout": "1s"})

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error) == (OK, "")


# Names and what may not be reached.

SCHEMES = pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp", "ws"])


@SCHEMES
@pytest.mark.parametrize("host", ["169.254.169.254", "0.0.0.0", "[::]", "[fe80::1]", "[::ffff:a9fe:a9fe]"])
async def test_a_denied_address_is_not_connected_to(scheme: str, host: str) -> None:
    outcome = await probe(f"{scheme}://{host}:80")
    assert (outcome.kind, outcome.error) == (FAILED, f"address {host.strip('[]')} is not allowed")
    assert outcome.response_time < 1


@SCHEMES
async def test_a_name_of_a_denied_address_is_not_connected_to(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["169.254.169.254", "fe80::1"]})
    outcome = await probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, "host name has no address that is allowed")


@SCHEMES
async def test_a_name_is_looked_up_once_and_the_answer_is_what_is_connected_to(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second answer could lead elsewhere (DNS rebinding)."""
    asked = names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    with closed_port() as port:
        outcome = await probe(f"{scheme}://agent.test:{port}")
    assert outcome.error == "connection refused"
    assert asked == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "host name could not be resolved"),
    ],
)
async def test_a_name_that_cannot_be_resolved(
    scheme: str, fault: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, {"agent.test": fault})
    outcome = await probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, text)


@SCHEMES
async def test_dns_that_hangs_ends_in_time(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as asked:
        outcome = await probe(f"{scheme}://agent.test:80", {"timeout": "0.05s"})
    assert (outcome.kind, outcome.error) == (FAILED, "no answer within 50 ms")
    assert asked == ["agent.test"]


async def test_names_whose_dns_hangs_keep_neither_addresses_nor_the_threads_of_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hanging_dns(monkeypatch):
        async with Prober(EgressPolicy()) as prober, listening(respond(answer())) as port:
            hanging = [
                asyncio.create_task(prober.probe(plan(f"http://agent-{i}.test:80", {"timeout": "5s"})))
                for i in range(100)
            ]
            await asyncio.sleep(0)
            assert (await prober.probe(plan(f"http://127.0.0.1:{port}"))).kind is OK
            assert await asyncio.to_thread(int, "7") == 7
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)


async def test_a_prober_closes_at_once_though_dns_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as asked:
        async with asyncio.timeout(5), Prober(EgressPolicy()) as prober:
            hanging = asyncio.create_task(prober.probe(plan("tcp://agent.test:80", {"timeout": "0.05s"})))
            assert (await hanging).error == "no answer within 50 ms"
    assert asked == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize("endpoint", ["", "://", "://:80", "://127.0.0.1:http"])
async def test_an_endpoint_that_cannot_be_read_fails(scheme: str, endpoint: str) -> None:
    outcome = await probe(scheme + endpoint)
    assert (outcome.kind, outcome.error) == (FAILED, "the endpoint is not a URL with a host")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_proxies_of_the_environment_are_not_used(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as dead:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        target = grpc_server(serving) if scheme == "grpc" else listening(respond(answer()))
        async with target as port:
            assert (await probe(f"{scheme}://127.0.0.1:{port}")).kind is OK

"""The prober: cancellation, closing, and failures of the registry itself."""

import asyncio
import errno
import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import grpc
import grpc.aio
import pytest

from registry_server.probes import Outcome, OutcomeKind
from registry_server.probes import http as http_probe
from registry_server.probes.grpc import GrpcProber
from registry_server.probes.prober import Prober
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import answer, black_hole, grpc_server, listening, respond
from tests.unit.probes.probe_tables import GRPC, HTTP, TLS, serving
from tests.unit.probes.probing import FAILED, INCONCLUSIVE, OK, plan, resolve_names


async def test_large_answers_of_an_owner_are_parsed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise hundreds that arrive at once would stop the event loop for as long as a pause."""
    passes: list[int] = [0]
    parse = http_probe._details

    def details(body: bytes) -> object:
        passes[-1] += 1
        return parse(body)

    async def count_passes() -> None:
        while True:
            await asyncio.sleep(0)
            passes.append(0)

    monkeypatch.setattr(http_probe, "_details", details)
    release = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await respond(answer(b'{"a": "' + b"x" * 3_000 + b'"}'))(reader, writer)

    async with Prober(EgressPolicy()) as prober, listening(handle, backlog=200) as port:
        by_owner = plan(f"http://127.0.0.1:{port}")._replace(owner="greedy")
        sent = [asyncio.create_task(prober.send_probe(by_owner)) for _ in range(100)]
        await asyncio.sleep(0.1)
        counting = asyncio.create_task(count_passes())
        release.set()
        outcomes = await asyncio.gather(*sent)
        counting.cancel()
    assert {outcome.kind for outcome in outcomes} == {OK}
    assert sum(passes) == 100
    assert max(passes) <= 4


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "tcp"])
def test_cancelled_probe_raises_and_affects_no_other(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with Prober(EgressPolicy()) as prober:
            with black_hole() as port:
                probing = asyncio.create_task(prober.send_probe(plan(f"{scheme}://127.0.0.1:{port}")))
                await asyncio.sleep(0.05)
                probing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await probing
            async with listening(respond(answer())) as port:
                return await prober.send_probe(plan(f"http://127.0.0.1:{port}"))

    assert runner.run(run()).kind is OK


@pytest.mark.parametrize("kind", ["heartbeat", "none"])
async def test_internal_error_is_logged_and_inconclusive(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with Prober(EgressPolicy()) as prober:
        target_plan = plan("http://127.0.0.1:1", {kind: {}})._replace(host="127.0.0.1")
        outcome = await prober.send_probe(target_plan)
    assert (outcome.kind, outcome.error) == (INCONCLUSIVE, "the probe failed within the registry")
    assert "probe failed unexpectedly" in "".join(capsys.readouterr())


@pytest.mark.parametrize("scheme", ["http", "grpc", "tcp"])
async def test_closed_prober_resolves_no_names(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    async with Prober(EgressPolicy()) as prober:
        pass
    assert (await prober.send_probe(plan(f"{scheme}://agent.test:80"))).kind is INCONCLUSIVE
    assert lookups == []


# Failures of the registry.


@contextmanager
def no_more_files() -> Iterator[None]:
    """Prevent this process from opening more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as opened:
        lowest = opened.fileno()  # the lowest free number
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "tcp"])
def test_probe_is_inconclusive_while_no_file_can_be_opened(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> tuple[Outcome, Outcome]:
        target = grpc_server(serving) if scheme == "grpc" else listening(respond(answer()))
        async with target as port, Prober(EgressPolicy()) as prober:
            target_plan = plan(f"{scheme.removesuffix('s')}://127.0.0.1:{port}", {"timeout": "5s"})
            with no_more_files():
                exhausted = await prober.send_probe(target_plan._replace(tls=scheme == "https"))
            return exhausted, await prober.send_probe(target_plan)

    exhausted, recovered = runner.run(run())
    assert (exhausted.kind, exhausted.error) == (INCONCLUSIVE, "the registry has too many open files")
    assert recovered.kind is OK


@pytest.mark.parametrize("scheme", ["http", "https", "tcp"])
@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.EADDRNOTAVAIL, INCONCLUSIVE, "the registry has no local address or port to connect from"),
        (errno.ENFILE, INCONCLUSIVE, "the registry has too many open files"),
        (errno.EHOSTUNREACH, FAILED, "host unreachable"),
        (errno.ENETUNREACH, FAILED, "network unreachable"),
        (errno.ETIMEDOUT, FAILED, "connection timed out"),
        (errno.EPERM, FAILED, "connection not permitted by the registry's host"),
        (errno.EIO, FAILED, "connection failed"),
    ],
)
async def test_connection_errors_are_attributed_to_registry_or_service(
    scheme: str, number: int, kind: OutcomeKind, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Never:
        raise OSError(number, os.strerror(number))

    async with Prober(EgressPolicy()) as prober:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
        outcome = await prober.send_probe(plan(f"{scheme}://127.0.0.1:80"))
    assert (outcome.kind, outcome.error) == (kind, text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Too many open files", "the registry has too many open files"),
        ("Cannot assign requested address", "the registry has no local address or port to connect from"),
        ("No route to host", "host unreachable"),
        ("Network is unreachable", "network unreachable"),
        ("something new", "connection failed"),
    ],
)
async def test_grpc_connection_errors_are_attributed_by_their_text(
    words: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only texts about a failed connection count: other texts may come from the peer."""

    async def probe_with(details: str) -> Outcome:
        error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

        def fail(*_: object) -> Never:
            raise error

        async with Prober(EgressPolicy()) as prober:
            monkeypatch.setattr(GrpcProber, "_channel", fail)
            return await prober.send_probe(plan("grpc://127.0.0.1:80"))

    outcome = await probe_with(f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:80: {words}")
    assert outcome.error == text
    assert outcome.kind is (INCONCLUSIVE if text.startswith("the registry") else FAILED)
    outcome = await probe_with(words)
    assert (outcome.kind, outcome.error) == (FAILED, "gRPC UNAVAILABLE")


def test_error_texts_reveal_no_internals() -> None:
    texts = {row.error for row in HTTP} | {row[3] for row in GRPC} | {row[3] for row in TLS}
    for text in texts:
        assert not re.search(r"0x|Error|Exception|errno|Errno|[a-z]_[a-z]|127\.0", text), text
        assert len(text) <= 100

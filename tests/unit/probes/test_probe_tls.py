"""Probes over TLS: trusted certificates, and the text of each failure."""

import asyncio

import pytest

from registry_server.probes import Outcome, OutcomeKind
from tests.support.endpoints import Certificates, answer, grpc_server, listening, respond
from tests.unit.probes.probe_tables import TLS, serving
from tests.unit.probes.probing import SHORT_TIMEOUT, TIMED_OUT, resolve_names, send_probe


@pytest.mark.parametrize(("certificate", "host", "kind", "error"), TLS)
async def test_https_certificate_is_verified_against_the_host_name(
    certificate: str,
    host: str,
    kind: OutcomeKind,
    error: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    async with listening(respond(answer()), tls=certificates.context(certificate)) as port:
        outcome = await send_probe(f"https://{host}:{port}", authorities=certificates.authority)
    assert (outcome.kind, outcome.error) == (kind, error)


@pytest.mark.parametrize(("certificate", "host", "kind", "error"), TLS)
async def test_grpcs_certificate_is_verified_against_the_host_name(
    certificate: str,
    host: str,
    kind: OutcomeKind,
    error: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    async with grpc_server(serving, credentials=certificates.credentials(certificate)) as port:
        outcome = await send_probe(f"grpcs://{host}:{port}", authorities=certificates.authority)
    assert (outcome.kind, outcome.error) == (kind, error)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_only_authorities_of_the_system_are_trusted_by_default(
    scheme: str, certificates: Certificates, runner: asyncio.Runner
) -> None:
    async def run() -> Outcome:
        async with listening(respond(answer()), tls=certificates.context("self-signed")) as port:
            return await send_probe(f"{scheme}://127.0.0.1:{port}")

    outcome = runner.run(run())
    assert outcome.error == "TLS: certificate is not trusted (self-signed certificate)"


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_server_without_tls_is_reported(scheme: str, runner: asyncio.Runner) -> None:
    async def bad_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer(status="400 Bad Request"))

    async def run() -> Outcome:
        async with listening(bad_request) as port:
            return await send_probe(f"{scheme}://127.0.0.1:{port}")

    assert runner.run(run()).error == "TLS: the server does not speak TLS"


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_hanging_handshake_times_out(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with listening(respond(after=9)) as port:
            return await send_probe(f"{scheme}://127.0.0.1:{port}", {"timeout": SHORT_TIMEOUT})

    assert runner.run(run()).error == TIMED_OUT

"""TLS and tokens, against a gRPC server that records the metadata it receives."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.cli.program import Done, Program
from tests.client.listener import Listener
from tests.client.test_channel import certificate
from tests.support.security import Policy
from tests.support.server import ServerProcess

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

__all__ = ["certificate"]


async def stats(target: str, directory: Path, *flags: str, **variables: str) -> Done:
    program = Program(target, directory)
    return await asyncio.to_thread(program.run, "stats", "-o", "json", "--timeout", "20", *flags, **variables)


async def test_token_is_read_from_the_environment_or_a_file(tmp_path: Path) -> None:
    listener = Listener()
    (tmp_path / "token").write_text("from-file\n", encoding="utf-8")
    async with listener.listening() as target:
        for flags, variables in (
            ((), {"OSSA_REGISTRY_TOKEN": "from-variable"}),
            (("--token-file", "token"), {"OSSA_REGISTRY_TOKEN": "from-variable"}),
            ((), {"OSSA_REGISTRY_TOKEN_FILE": "token"}),
            ((), {}),
        ):
            done = await stats(target, tmp_path, *flags, **variables)
            assert (done.code, done.err) == (0, "")
    assert listener.authorizations == ["Bearer from-variable", "Bearer from-file", "Bearer from-file", None]


async def test_server_certificate_is_verified_against_the_ca(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    ca, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), ca.read_bytes())])
    name = ("--server-name", "registry.test")
    async with Listener().listening(credentials) as target:
        assert (await stats(target, tmp_path, "--ca-file", str(ca), *name)).code == 0
        assert (await stats(target, tmp_path, *name, OSSA_REGISTRY_CA_FILE=str(ca))).code == 0
        untrusted = await stats(target, tmp_path, "--tls", *name)
        assert untrusted.code == 4
        assert "the server certificate is not trusted; see --ca-file" in untrusted.err
        wrong_name = await stats(target, tmp_path, "--ca-file", str(ca), "--server-name", "other.test")
        assert wrong_name.code == 4
        assert "the server certificate is for another host name; see --server-name" in wrong_name.err
        plain = await stats(target, tmp_path)
        assert plain.code == 4
        assert "the connection was closed; does the server require TLS (--tls)?" in plain.err


async def test_client_certificate_is_sent_for_mutual_tls(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    ca, key = certificate
    pair = (key.read_bytes(), ca.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], root_certificates=ca.read_bytes(), require_client_auth=True)
    mutual_tls = (
        "--ca-file",
        str(ca),
        "--cert-file",
        str(ca),
        "--key-file",
        str(key),
        "--server-name",
        "registry.test",
    )
    async with Listener().listening(credentials) as target:
        assert (await stats(target, tmp_path, *mutual_tls)).code == 0


async def test_health_of_a_registry_with_a_policy_needs_no_credential(tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    flags = (f"--data-dir={tmp_path / 'data'}", f"--security.policy-file={policy.file}")

    async def health(server: ServerProcess, *args: str, **variables: str) -> Done:
        program = Program(server.grpc_address, tmp_path)
        return await asyncio.to_thread(program.run, "health", *args, "--timeout", "20", **variables)

    async with ServerProcess(*flags) as server:
        done = await health(server)
        assert done.code == 0
        assert [line.split() for line in done.out.splitlines()] == [
            ["registry", server.grpc_address],
            ["status", "healthy"],
        ]
        assert done.err.startswith(
            "ossa-registry: store, services and revision are not shown: a credential is required"
        )
        assert (await health(server, "-o", "json")).json == {"status": "healthy"}
        full = await health(server, OSSA_REGISTRY_TOKEN=policy.keys["viewer"])
        assert (full.code, "revision" in full.out) == (0, True)
        assert (await health(server, OSSA_REGISTRY_TOKEN="wrong")).code == 6
        assert (await health(server, "some-service")).code == 6
    async with ServerProcess(*flags, "--security.public=none") as server:
        assert (await health(server)).code == 6


@pytest.mark.parametrize("flag", ["--cert-file", "--key-file"])
async def test_client_certificate_without_its_key_is_a_usage_error(tmp_path: Path, flag: str) -> None:
    done = await stats("127.0.0.1:1", tmp_path, flag, __file__)
    assert (done.code, "--cert-file and --key-file belong together" in done.err) == (2, True)

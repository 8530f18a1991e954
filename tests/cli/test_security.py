"""TLS and tokens, against a gRPC server that tells what it was sent."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.cli.program import Done, Program
from tests.client.test_channel import Listener, certificate

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

__all__ = ["certificate"]


async def stats(target: str, directory: Path, *flags: str, **variables: str) -> Done:
    program = Program(target, directory)
    return await asyncio.to_thread(program.run, "stats", "-o", "json", "--timeout", "20", *flags, **variables)


async def test_the_token_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
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


async def test_a_registry_is_trusted_by_its_authority(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    ca, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), ca.read_bytes())])
    name = ("--server-name", "registry.test")
    async with Listener().listening(credentials) as target:
        assert (await stats(target, tmp_path, "--ca-file", str(ca), *name)).code == 0
        assert (await stats(target, tmp_path, *name, OSSA_REGISTRY_CA_FILE=str(ca))).code == 0
        stranger = await stats(target, tmp_path, "--tls", *name)
        assert stranger.code == 4
        assert "its certificate is not trusted; see --ca-file" in stranger.err
        other = await stats(target, tmp_path, "--ca-file", str(ca), "--server-name", "other.test")
        assert other.code == 4
        assert "its certificate is that of another host; see --server-name" in other.err
        plain = await stats(target, tmp_path)
        assert plain.code == 4
        assert "the connection was closed; does it ask for TLS (--tls)?" in plain.err


async def test_a_registry_that_asks_for_it_gets_the_certificate_of_the_client(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    ca, key = certificate
    pair = (key.read_bytes(), ca.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], root_certificates=ca.read_bytes(), require_client_auth=True)
    mine = ("--ca-file", str(ca), "--cert-file", str(ca), "--key-file", str(key), "--server-name", "registry.test")
    async with Listener().listening(credentials) as target:
        assert (await stats(target, tmp_path, *mine)).code == 0

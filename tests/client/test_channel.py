"""Targets, TLS and tokens, against a gRPC server that records the metadata it receives."""

import subprocess
from pathlib import Path

import grpc
import pytest

from registry_client import Backoff, RegistryClient, RegistryUnavailable, Tls, Unauthenticated
from registry_client.channel import Channels
from registry_client.errors import DeadlineExceeded
from tests.client.listener import Listener


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for ``registry.test``, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1]), "-days", "2", "-subj", "/CN=registry.test"]
    command += ["-addext", "subjectAltName=DNS:registry.test"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not in PATH")
    return paths


async def test_token_is_sent_with_each_call_and_may_change() -> None:
    listener = Listener()
    tokens = iter(["one", "two"])
    async with listener.listening() as target, RegistryClient(target, token=lambda: next(tokens)) as client:
        await client.get_stats()
        await client.get_stats()
    async with listener.listening() as target, RegistryClient(target, token="fixed") as client:
        await client.get_stats()
    async with listener.listening() as target, RegistryClient(target) as client:
        await client.get_stats()
    assert listener.authorizations == ["Bearer one", "Bearer two", "Bearer fixed", None]


async def test_failing_token_function_raises_unauthenticated() -> None:
    async with RegistryClient("127.0.0.1:1", token=lambda: Path("/nowhere").read_text()) as client:
        with pytest.raises(Unauthenticated, match="nowhere"):
            await client.get_stats()


async def test_server_certificate_is_verified_against_the_ca(certificate: tuple[Path, Path]) -> None:
    ca, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), ca.read_bytes())])
    async with Listener().listening(credentials) as target:
        async with RegistryClient(target, tls=Tls(ca=ca, server_name="registry.test"), timeout=30) as client:
            await client.get_stats()
        for untrusted in (Tls(server_name="registry.test"), Tls(ca=ca, server_name="other.test"), None):
            async with RegistryClient(target, tls=untrusted, timeout=0.5) as client:
                with pytest.raises((RegistryUnavailable, DeadlineExceeded)):
                    await client.get_stats()


async def test_client_certificate_is_sent_for_mutual_tls(certificate: tuple[Path, Path]) -> None:
    ca, key = certificate
    pair = (key.read_bytes(), ca.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], root_certificates=ca.read_bytes(), require_client_auth=True)
    async with Listener().listening(credentials) as target:
        mutual_tls = Tls(ca=ca.read_bytes(), certificate=ca, key=key, server_name="registry.test")
        async with RegistryClient(target, tls=mutual_tls, timeout=30) as client:
            await client.get_stats()
        async with RegistryClient(target, tls=Tls(ca=ca, server_name="registry.test"), timeout=0.5) as client:
            with pytest.raises((RegistryUnavailable, DeadlineExceeded)):
                await client.get_stats()


def test_repr_of_tls_omits_keys() -> None:
    assert "secret" not in repr(Tls(key=b"secret", certificate=b"secret"))


@pytest.mark.parametrize("given", ["certificate", "key"])
def test_certificate_and_key_without_the_other_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="belong together"):
        Tls(**{given: b"PEM"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{given} must be a Path, or bytes"):
        Tls(**{given: "client.pem"})  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", [Tls(ca=b"no PEM"), Tls(certificate=b"no PEM", key=b"no PEM")])
async def test_invalid_pem_text_raises_an_error(tls: Tls) -> None:
    async with RegistryClient("127.0.0.1:1", tls=tls, timeout=0.5) as client:
        with pytest.raises((RegistryUnavailable, DeadlineExceeded)):
            await client.get_stats()


def test_several_failures_on_one_target_fail_over_once() -> None:
    channels = Channels(["a", "b", "a", "c"], None, None, Backoff())
    assert (len(channels), channels.target) == (3, "a:50051")
    channels.fail_over("a:50051")
    channels.fail_over("a:50051")
    assert channels.target == "b:50051"
    channels.fail_over("b:50051")
    channels.fail_over("c:50051")
    assert channels.target == "a:50051"


def test_rejected_token_is_not_the_failure_of_a_target() -> None:
    channels = Channels(["a", "b"], None, None, Backoff(first=0.1, uniform=max))
    assert channels.reopen_delay("a:50051", 1, Unauthenticated("expired")) == pytest.approx(0.1)
    assert channels.target == "a:50051"
    assert channels.reopen_delay("a:50051", 1, RegistryUnavailable("connection refused")) == 0
    assert channels.target == "b:50051"


def test_every_other_target_is_tried_once_without_a_delay() -> None:
    channels = Channels(["a", "b", "c"], None, None, Backoff(first=0.1, uniform=max))
    delays = [channels.fail_over(channels.target, failures, at_least=1.0) for failures in (1, 2, 3, 4)]
    assert delays == [0, 0, pytest.approx(1.4), pytest.approx(1.8)]
    assert Channels(["a"], None, None, Backoff(first=0.1, uniform=max)).fail_over("a:50051", 1) == pytest.approx(0.1)

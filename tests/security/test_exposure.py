"""A server that others can reach protects itself, or says that it does not."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from registry_server.config import GrpcSettings, Settings
from registry_server.errors import ConfigurationError
from registry_server.security.exposure import check_exposure, is_local

LOCAL = ["127.0.0.1:1", "127.8.8.8:0", "[::1]:1", "localhost:1", "unix:/run/registry.sock", "unix:registry.sock"]
EXPOSED = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "registry.internal:1", "[fe80::1]:1", "localhost.example.com:1"]
FILE = Path("/nowhere")
TLS = {"cert_file": FILE, "key_file": FILE}


@pytest.mark.parametrize("address", LOCAL)
def test_an_address_of_this_machine_is_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", EXPOSED)
def test_every_other_address_is_not(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize("address", EXPOSED)
@pytest.mark.parametrize("key", ["grpc", "http"])
def test_others_are_not_served_without_protection(key: str, address: str) -> None:
    section: dict[str, Any] = {key: {"address": address}}
    settings = Settings(**section)
    with pytest.raises(ConfigurationError) as caught:
        check_exposure(settings)
    for name in (f"{key}.address", "tls.cert_file", "security.policy_file", "--insecure"):
        assert name in str(caught.value)
    with capture_logs() as logs:
        check_exposure(settings.model_copy(update={"insecure": True}))
    assert [line["log_level"] for line in logs] == ["warning"]


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({"tls": TLS}, ["security.policy_file"]),
        ({"security": {"policy_file": FILE}}, ["tls.cert_file"]),
        ({"tls": TLS, "security": {"policy_file": FILE}}, []),
        ({"tls": TLS | {"client_ca_file": FILE}}, []),
    ],
)
def test_what_is_missing_is_named(sections: Mapping[str, Any], missing: list[str]) -> None:
    settings = Settings(grpc=GrpcSettings(address="0.0.0.0:1"), **sections)
    if not missing:
        with capture_logs() as logs:
            check_exposure(settings)
        assert logs == []
        return
    with pytest.raises(ConfigurationError) as caught:
        check_exposure(settings)
    named = [name for name in ("tls.cert_file", "security.policy_file") if name in str(caught.value)]
    assert named == missing


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--grpc.address=0.0.0.0:0"], "grpc.address: other machines can reach 0.0.0.0:0"),
        (["--security.policy-file=/nowhere/policy.yaml"], "cannot read '/nowhere/policy.yaml'"),
        (["--tls.cert-file=/nowhere/tls.crt", "--tls.key-file=/nowhere/tls.key"], "cannot read '/nowhere/tls.crt'"),
        (["--tls.cert-file=/nowhere/tls.crt"], "tls.key_file (default): must be given together with --tls.cert-file"),
        (["--tls.client-ca-file=/nowhere/ca.pem"], "--tls.client-ca-file: needs tls.cert_file"),
        (["--security.public=health,everything"], "--security.public: must be some of health, metrics, docs"),
    ],
)
async def test_the_program_ends_with_2_and_says_why(flags: list[str], told: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "registry_server", f"--data-dir={tmp_path}", "--http.address=127.0.0.1:0"),
        *("--grpc.address=127.0.0.1:0", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await process.communicate()
    assert process.returncode == 2
    assert told in output.decode()
    assert "Traceback" not in output.decode()

"""``check_exposure``: listen addresses that need TLS and authentication."""

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
def test_loopback_and_unix_addresses_are_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", EXPOSED)
def test_other_addresses_are_not_local(address: str) -> None:
    assert not is_local(address)


@pytest.mark.parametrize("address", EXPOSED)
@pytest.mark.parametrize("key", ["grpc", "http"])
def test_unprotected_exposed_address_is_refused(key: str, address: str) -> None:
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
def test_error_names_the_missing_protection(sections: Mapping[str, Any], missing: list[str]) -> None:
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

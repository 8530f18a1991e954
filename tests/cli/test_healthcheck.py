"""``healthcheck``: the health check of the image, with every kind of listener and in every state of the registry."""

import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from registry_server.app import serving
from tests.cli.program import PROGRAM
from tests.support.certificates import Authority
from tests.support.processes import run_to_end
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy
from tests.support.server import ServerProcess, settings

DEAD_PROXY = "http://127.0.0.1:1"
PROXIES = {name: DEAD_PROXY for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (each, each.lower())}

pytestmark = pytest.mark.timeout(300)


async def check(address: str, *flags: str, **variables: Any) -> tuple[int, str]:
    """Run the check with the settings of a server in its environment, and only proxies that do not work."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OSSA_REGISTRY_")} | PROXIES
    env |= {"OSSA_REGISTRY_HTTP__ADDRESS": address}
    env |= {f"OSSA_REGISTRY_{name.upper()}": str(value) for name, value in variables.items()}
    return await run_to_end(PROGRAM, "healthcheck", "--timeout=20", *flags, max_seconds=60, env=env)


KINDS: dict[str, dict[str, Any]] = {
    "plaintext": {},
    "TLS": {"cert_file": "server.pem", "key_file": "server.key"},
    "optional client certificates": {"http_client_certificates": "optional"},
    "required client certificates": {"http_client_certificates": "required"},
}


@pytest.mark.parametrize(
    ("kind", "host"), [*((kind, "0.0.0.0") for kind in KINDS), ("plaintext", "127.0.0.1"), ("plaintext", "[::]")]
)
async def test_serving_registry_is_alive_without_a_credential(
    redis: RedisProcess, tmp_path: Path, kind: str, host: str
) -> None:
    tls: dict[str, Any] = dict(KINDS[kind])
    if tls:
        authority = Authority(tmp_path)
        tls["cert_file"], tls["key_file"] = authority.files("server", "registry.example")
        if "http_client_certificates" in tls:
            tls["client_ca_file"] = authority.file
    policy = {"policy_file": Policy(tmp_path / "policy").file}
    at = settings(redis.url, http={"address": f"{host}:0"}, tls=tls, security=policy)
    variables = {f"tls__{name}": value for name, value in tls.items()}
    async with serving(at.model_copy(update={"insecure": True})) as served:
        await served.parts.loaded.wait()
        assert await check(served.http_address, **variables) == (0, "")
        code, output = await check(served.http_address, "--ready", **variables)
        if kind == "required client certificates":
            assert (code, "set tls.http_client_certificates to optional" in output) == (1, True)
        else:
            assert (code, output) == (0, "")
    port = served.http_address.rpartition(":")[2]
    refused = f"ossa-registry: no answer from 127.0.0.1:{port}: Connection refused\n"
    assert await check(served.http_address, **variables) == (1, refused)


async def test_registry_without_redis_is_alive_but_not_ready() -> None:
    async with serving(settings("redis://127.0.0.1:1")) as served:
        assert await check(served.http_address) == (0, "")
        code, output = await check(served.http_address, "--ready")
    assert code == 1
    assert output.startswith("ossa-registry: GET /health returned 503: ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plaintext", "required client certificates"])
async def test_stopped_process_is_not_alive(redis: RedisProcess, tmp_path: Path, kind: str) -> None:
    variables: dict[str, Any] = {}
    flags = [f"--redis.url={redis.url}"]
    if kind != "plaintext":
        authority = Authority(tmp_path)
        certificate, key = authority.files("server")
        variables = {"tls__cert_file": certificate, "tls__key_file": key, "tls__client_ca_file": authority.file}
        flags += [f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in variables.items()]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ServerProcess(*flags))
        assert (await check(server.http_address, **variables))[0] == 0
        server.signal(signal.SIGSTOP)
        code, output = await check(server.http_address, "--timeout=2", **variables)
        server.signal(signal.SIGCONT)
    assert code == 1
    assert "timed out" in output


async def test_settings_with_an_error_are_reported() -> None:
    code, output = await check("127.0.0.1:1", "--htp.address=127.0.0.1:1")
    assert (code, output.startswith("ossa-registry: ")) == (1, True)
    assert "--htp.address" in output

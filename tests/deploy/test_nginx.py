"""The nginx samples in front of real registries: calls, watches, heartbeats, REST, events and a registry that ends."""

import asyncio
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from registry_client import EventType, RegistryClient, Tls, make_service
from tests.support.certificates import Authority
from tests.support.redis_process import RedisProcess, free_port
from tests.support.server import ServerProcess

SAMPLES = Path(__file__).parents[2] / "deploy" / "nginx"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_TIMEOUT = 20.0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not in PATH")]

MAIN = """
{modules}
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
{stream}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    {http}
}}
"""


def substituted(text: str, values: dict[str, str]) -> str:
    """Replace texts of a sample, each of which must occur, by those of the test."""
    for documented, actual in values.items():
        assert documented in text, documented
        text = text.replace(documented, actual)
    return text


@asynccontextmanager
async def nginx(directory: Path, port: int, *, http: str = "", stream: str = "") -> AsyncIterator[None]:
    """Run nginx with a sample until the block ends."""
    modules = f"load_module {STREAM_MODULE};" if stream else ""
    configuration = directory / "nginx.conf"
    configuration.write_text(
        MAIN.format(modules=modules, directory=directory, http=http, stream=stream), encoding="utf-8"
    )
    process = await asyncio.create_subprocess_exec(
        "nginx", "-e", str(directory / "error.log"), "-p", str(directory), "-c", str(configuration)
    )
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not await accepts(port):
                log = directory / "error.log"
                assert process.returncode is None, log.read_text(encoding="utf-8")
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def two_registries(redis: RedisProcess, *flags: str) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    flags = (f"--redis.url={redis.url}", *flags)
    async with ServerProcess(*flags) as first, ServerProcess(*flags) as second:
        yield first, second


@asynccontextmanager
async def balanced(tmp_path: Path, redis: RedisProcess) -> AsyncIterator[tuple[int, Authority, ServerProcess]]:
    """Two registries behind the HTTP sample: its port, who signed its certificate, and one of the registries."""
    authority, port = Authority(tmp_path / "authority"), free_port()
    certificate, key = authority.files("nginx", "localhost")
    async with two_registries(redis) as (first, second):
        sample = substituted(
            (SAMPLES / "ossa-registry.conf").read_text(encoding="utf-8"),
            {
                "127.0.0.1:50051": first.grpc_address,
                "127.0.0.1:50052": second.grpc_address,
                "127.0.0.1:3002": first.http_address,
                "127.0.0.1:3003": second.http_address,
                "listen 443 ": f"listen 127.0.0.1:{port} ",
                "/etc/ossa-registry/tls.crt": str(certificate),
                "/etc/ossa-registry/tls.key": str(key),
            },
        )
        async with nginx(tmp_path, port, http=sample):
            yield port, authority, first


def agent(name: str) -> dict[str, object]:
    return {"name": name, "endpoint": f"http://{name}.test", "version": "1.0.0", "capabilities": []}


async def test_calls_watches_and_leases_pass_through_nginx(tmp_path: Path, redis: RedisProcess) -> None:
    service = make_service("a", "http://a.test", version="1.0.0", health_check="heartbeat", ttl=5)
    async with (
        balanced(tmp_path, redis) as (port, authority, _),
        RegistryClient(f"localhost:{port}", tls=Tls(ca=authority.pem)) as client,
        client.watch(include_snapshot=True) as watch,
    ):
        async with client.registration(service) as registration:
            event = await anext(aiter(watch))
            assert event.service.name == "a"
            await asyncio.sleep(7)  # longer than the lease: heartbeats pass through
            assert registration.state.value == "registered"
            assert (await client.get_service("a")).registered_at == event.service.registered_at
        while event.type != EventType.EVENT_TYPE_SERVICE_UNREGISTERED:
            event = await anext(aiter(watch))
        assert event.service.name == "a"


async def test_rest_and_events_pass_through_nginx(tmp_path: Path, redis: RedisProcess) -> None:
    async with balanced(tmp_path, redis) as (port, authority, _), aiohttp.ClientSession() as session:
        secure = ssl.create_default_context(cadata=authority.pem.decode())
        base = f"https://localhost:{port}/api/v1/registry"
        async with session.get(f"{base}/events", ssl=secure) as events:
            async with session.post(f"{base}/services", json=agent("b"), ssl=secure) as answer:
                assert answer.status == 201
            async with asyncio.timeout(10):  # nginx would keep it back if it buffered
                while b"service:registered" not in await events.content.readline():
                    pass
        async with session.get(f"https://localhost:{port}/health", ssl=secure) as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "healthy"})


async def test_clients_continue_when_a_registry_behind_nginx_ends(tmp_path: Path, redis: RedisProcess) -> None:
    async with (
        balanced(tmp_path, redis) as (port, authority, first),
        RegistryClient(f"localhost:{port}", tls=Tls(ca=authority.pem)) as client,
        client.watch() as watch,
    ):
        seen = asyncio.create_task(anext(aiter(watch)))
        while not watch.cursor:
            await asyncio.sleep(0.01)
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        await client.register_service(make_service("c", "http://c.test", version="1.0.0", health_check="none"))
        async with asyncio.timeout(20):
            assert (await seen).service.name == "c"


@pytest.mark.skipif(not STREAM_MODULE.exists(), reason="nginx has no stream module (libnginx-mod-stream)")
async def test_tls_of_the_registry_passes_through_the_tcp_sample(tmp_path: Path, redis: RedisProcess) -> None:
    authority, port = Authority(tmp_path / "authority"), free_port()
    certificate, key = authority.files("registry", "localhost")
    agent_pair = authority.pair("agent.test", common_name="agent")
    flags = (f"--tls.cert-file={certificate}", f"--tls.key-file={key}", f"--tls.client-ca-file={authority.file}")
    async with two_registries(redis, *flags) as (first, second):
        sample = substituted(
            (SAMPLES / "ossa-registry-stream.conf").read_text(encoding="utf-8"),
            {
                "127.0.0.1:50051": first.grpc_address,
                "127.0.0.1:50052": second.grpc_address,
                "listen 50050;": f"listen 127.0.0.1:{port};",
            },
        )
        tls = Tls(ca=authority.pem, certificate=agent_pair[0], key=agent_pair[1])
        async with nginx(tmp_path, port, stream=sample), RegistryClient(f"localhost:{port}", tls=tls) as client:
            await client.register_service(make_service("d", "http://d.test", version="1.0.0", health_check="none"))
            assert (await client.get_service("d")).name == "d"

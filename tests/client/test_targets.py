"""Addresses of registries, and which proxy a client uses for them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from registry_client import DeadlineExceeded, RegistryClient, RegistryUnavailable, SyncRegistryClient
from registry_client.targets import is_loopback, parse_target, proxy_from_environment
from registry_server.runtime.tasks import cancel
from tests.client.listener import Listener
from tests.support.waiting import until

REMOTE = "registry.example.com:50051"
PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", "localhost:50051"),
        ("localhost:1", "localhost:1"),
        ("10.0.0.7", "10.0.0.7:50051"),
        ("registry.example.com.:65535", "registry.example.com.:65535"),
        ("::1", "[::1]:50051"),
        ("[::1]", "[::1]:50051"),
        ("[fe80::1%eth0]:443", "[fe80::1%eth0]:443"),
        ("dns:///my_registry", "my_registry:50051"),
        ("unix:/run/registry.sock", "unix:/run/registry.sock"),
        ("unix:///run/registry.sock", "unix:///run/registry.sock"),
    ],
)
def test_target_without_a_port_uses_the_default_port(text: str, expected: str) -> None:
    assert parse_target(text) == expected
    assert RegistryClient(text).target == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("http://localhost:50051", "remove http:// and use localhost:50051"),
        ("https://user:secret@registry.test/path", "remove https:// and use registry.test"),
        ("grpc://localhost:50051", "remove grpc://"),
        ("xds:///registry", "remove xds://"),
        ("localhost:70000", "from 1 to 65535"),
        ("localhost:0", "from 1 to 65535"),
        ("localhost:", "from 1 to 65535"),
        ("localhost:http", "from 1 to 65535"),
        ("localhost:" + "1" * 5_000, "from 1 to 65535"),
        ("local host:50051", "is not a host name"),
        ("localhost:50051/path", "from 1 to 65535"),
        ("-a:1", "is not a host name"),
        ("[localhost]:1", "is not a host name"),
        ("1::2::3", "is not HOST:PORT"),
        (":50051", "is not HOST:PORT"),
        ("a\n:1", "is not a host name"),
        ("unix:", "path is missing"),
    ],
)
def test_invalid_target_is_refused_when_the_client_is_made(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SyncRegistryClient(["localhost:50051", text])


@pytest.mark.parametrize("text", ["localhost", "a.localhost", "127.0.0.2", "::1", "[::ffff:127.0.0.1]", "unix:/x"])
def test_loopback_is_never_reached_through_a_proxy(text: str) -> None:
    target = parse_target(text)
    assert is_loopback(target)
    assert proxy_from_environment(target, {"http_proxy": PROXY, "no_proxy": ""}) is None


@pytest.mark.parametrize("text", ["localhost.example.com", "10.0.0.1", "2001:db8::1", "127.example.com"])
def test_other_hosts_are_not_loopback(text: str) -> None:
    assert not is_loopback(parse_target(text))


@pytest.mark.parametrize("variable", ["no_grpc_proxy", "no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(
    ("target", "excluded", "expected"),
    [
        (REMOTE, "*", False),
        (REMOTE, "other.test, *", False),
        (REMOTE, "example.com", False),
        (REMOTE, " .Example.COM ", False),
        (REMOTE, "*.example.com", False),
        (REMOTE, "registry.example.com:50051", False),
        ("10.1.2.3:1", "10.0.0.0/8", False),
        ("10.1.2.3:1", "10.1.2.3", False),
        ("[2001:db8::1]:1", "2001:db8::/32", False),
        (REMOTE, "", True),
        (REMOTE, ",", True),
        (REMOTE, "example.org,registry.example.com:1", True),
        ("10.1.2.3:1", "11.0.0.0/8,0.1.2.3,2001:db8::/32", True),
    ],
)
def test_excluded_hosts_are_reached_directly(target: str, excluded: str, variable: str, *, expected: bool) -> None:
    assert bool(proxy_from_environment(target, {"http_proxy": PROXY, variable: excluded})) is expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"http_proxy": PROXY}, f"{PROXY} (from the variable http_proxy)"),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:2"}, "http://b:2 (from the variable https_proxy)"),
        ({"https_proxy": "http://b:2", "grpc_proxy": "http://c:3"}, "http://c:3 (from the variable grpc_proxy)"),
        ({"http_proxy": PROXY, "grpc_proxy": ""}, None),
        ({"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY, "all_proxy": PROXY}, None),
        ({"http_proxy": "proxy.example.com:3128"}, f"{PROXY} (from the variable http_proxy)"),
        ({"http_proxy": "http://user:secret@proxy.example.com:3128"}, f"{PROXY} (from the variable http_proxy)"),
        ({"http_proxy": "socks5://proxy.example.com"}, None),
        ({"http_proxy": PROXY, "no_grpc_proxy": "", "no_proxy": "*"}, f"{PROXY} (from the variable http_proxy)"),
    ],
)
def test_variables_are_read_in_the_order_of_grpc(environ: dict[str, str], expected: str | None) -> None:
    proxy = proxy_from_environment(REMOTE, environ)
    assert (str(proxy) if proxy else None) == expected


def test_unsupported_proxy_is_refused_and_its_variable_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    proxy_from_environment(REMOTE, {"http_proxy": "https://user:secret@proxy.test"})
    assert "http_proxy" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(ValueError, match="http://"):
        RegistryClient(proxy="socks5://proxy.test")


class ConnectProxy:
    """An HTTP proxy that records the requests for tunnels, and refuses or opens them to a fixed address."""

    def __init__(self, tunnel_to: str = "") -> None:
        self._tunnel_to = tunnel_to
        self.requests: list[str] = []
        self._connections: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await cancel(self._connections)  # Python 3.11 does not wait for them

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.append(connection)
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")[0])
            if not self._tunnel_to:
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
            host, _, port = self._tunnel_to.partition(":")
            to_reader, to_writer = await asyncio.open_connection(host, int(port))
            with closing(to_writer):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(self._copy(reader, to_writer), self._copy(to_reader, writer))
        finally:
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment without proxy variables."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


async def test_calls_and_streams_go_through_the_proxy(environment: pytest.MonkeyPatch) -> None:
    async with Listener().listening() as target:
        proxy = ConnectProxy(tunnel_to=target)
        async with proxy.listening() as url:
            environment.setenv("http_proxy", url)
            async with RegistryClient("registry.test", timeout=30) as client:
                await client.get_stats()
            async with RegistryClient(target, timeout=30) as client:  # loopback
                await client.get_stats()
            environment.delenv("http_proxy")
            async with RegistryClient("registry.test:1", timeout=30, proxy=url) as client:
                await client.get_stats()
    assert proxy.requests == ["CONNECT registry.test:50051 HTTP/1.1", "CONNECT registry.test:1 HTTP/1.1"]


async def test_error_names_the_proxy_without_its_password(environment: pytest.MonkeyPatch) -> None:
    proxy = ConnectProxy()
    async with proxy.listening() as url:
        environment.setenv("https_proxy", url)
        address = url.replace("user:secret@", "")
        async with RegistryClient("registry.test", timeout=1) as client, client.cache(wait=False) as cache:
            with pytest.raises((RegistryUnavailable, DeadlineExceeded)) as caught:
                await client.get_stats()
            await until(lambda: cache.last_error)
            for error in (caught.value, cache.last_error):
                assert f"the proxy {address} (from the variable https_proxy)" in str(error)
                assert "secret" not in str(error)
        async with RegistryClient("direct.test", timeout=0.5, proxy=False) as client:
            with pytest.raises((RegistryUnavailable, DeadlineExceeded)) as caught:
                await client.get_stats()
        assert "proxy" not in str(caught.value)
    assert set(proxy.requests) == {"CONNECT registry.test:50051 HTTP/1.1"}


async def test_command_names_the_proxy_and_may_ignore_it(environment: pytest.MonkeyPatch) -> None:
    async with ConnectProxy().listening() as url:
        environment.setenv("http_proxy", url)
        errors = [
            (await asyncio.to_thread(list_services, *arguments)).stderr
            for arguments in (("-t", "registry.test"), ("-t", "registry.test", "--no-proxy"), ("-t", "http://a"))
        ]
    assert "registry.test:50051 through the proxy http://127.0.0.1:" in errors[0]
    assert "the proxy refuses to connect" in errors[0]
    assert "proxy" not in errors[1]
    assert "remove http:// and use a" in errors[2]
    assert "secret" not in "".join(errors)


def list_services(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ossa-registry")), "list", "--timeout", "5", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

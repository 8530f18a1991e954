"""The ports that a registry listens on: their addresses, and taking them over at a restart."""

import asyncio
import socket
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from registry_client import RegistryClient
from tests.support.redis_process import RedisProcess, free_port
from tests.support.server import ServerProcess


async def reachable(port: int) -> set[str]:
    """Return the loopback addresses on which a port accepts connections."""
    found = set()
    for address in ("127.0.0.1", "::1"):
        with suppress(OSError):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
            found.add(address)
    return found


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", ["[::]", "0.0.0.0", "localhost"])
async def test_host_means_the_same_on_both_ports(redis: RedisProcess, host: str) -> None:
    both = {"127.0.0.1", "::1"} if has_ipv6() else {"127.0.0.1"}
    flags = (f"--redis.url={redis.url}", "--insecure", f"--grpc.address={host}:0", f"--http.address={host}:0")
    async with ServerProcess(*flags) as server:
        for bound in (server.grpc_address, server.http_address):
            assert await reachable(int(bound.rpartition(":")[2])) == both


async def test_client_over_ipv4_keeps_its_address_on_all_interfaces(tmp_path: Path) -> None:
    flags = ("--http.address=[::]:0", "--insecure", "--log.requests=all", f"--data-dir={tmp_path}")
    async with ServerProcess("--redis.url=embedded", *flags) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http_address.rpartition(":")[2]))
        writer.write(b"GET /api/v1/registry/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        request = await server.logged("request")
        assert request["peer"].startswith("127.0.0.1:")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_number_of_workers_changes_at_a_restart_under_clients(redis: RedisProcess, host: str) -> None:
    """The connections of clients that have not closed them outlive the process, and must not block its successor."""
    ports = [free_port(), free_port()]
    flags = [f"--redis.url={redis.url}", "--insecure", "--shutdown.grace-seconds=1"]
    flags += [f"--{name}.address={host}:{port}" for name, port in zip(("grpc", "http"), ports, strict=True)]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(RegistryClient(f"127.0.0.1:{ports[0]}", timeout=30))
        for workers in (1, 2, 3, 1):
            async with ServerProcess(*flags, f"--workers={workers}") as server:
                assert (await server.logged("ossa-registry serves")).get("workers", 1) == workers
                await client.get_stats()
                for port in ports:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    stack.callback(writer.close)
                    if port == ports[1]:
                        writer.write(b"GET /api/v1/registry/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert await server.stop() == 0

"""A connection of the HTTP server with a handler of the test."""

import asyncio

from aiohttp import web

from registry_server.config import HttpSettings
from registry_server.gateway.answers import Answer
from registry_server.gateway.connections import Connections
from registry_server.gateway.protocol import ConnectionLimits, Runner
from registry_server.instrumentation.tracing import TRACE_ID
from registry_server.security.identity import CALLER_KEY, UNCHECKED, Identity, Role, current_identity


async def test_requests_of_a_connection_share_a_task_but_no_context() -> None:
    seen: list[tuple[Identity, tuple[str, str], str]] = []
    tasks: set[asyncio.Task[object] | None] = set()

    async def handle(_: web.BaseRequest) -> Answer:
        seen.append((current_identity.get(), CALLER_KEY.get(), TRACE_ID.get()))
        tasks.add(asyncio.current_task())
        current_identity.set(Identity("someone", Role.VIEWER))
        CALLER_KEY.set(("address", "192.0.2.1"))
        TRACE_ID.set("1" * 32)
        return Answer(b"{}")

    runner = Runner(handle, ConnectionLimits(5, 5, 1 << 16, lambda _: True), access_log=None)
    await runner.setup()
    connections = Connections(HttpSettings(), 1 << 20)

    def make_protocol() -> asyncio.Protocol:
        place = connections.accept("127.0.0.1")
        assert place is not None
        return runner.make_protocol(place)

    listening = await asyncio.get_running_loop().create_server(make_protocol, "127.0.0.1", 0)
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    assert seen[0] == seen[1]
    assert seen[0][0] is UNCHECKED
    assert len(tasks) == 1
    await runner.cleanup()

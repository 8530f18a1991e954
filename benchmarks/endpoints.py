"""Many agents in one process: serves ``GET /health`` on COUNT ports. ``python -m benchmarks.endpoints COUNT``."""

import asyncio
import resource
import sys
from typing import cast

import uvloop

_RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'


class _Agent(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's class does not derive from it

    def data_received(self, _: bytes) -> None:
        self._transport.write(_RESPONSE)
        self._transport.close()


async def _main(count: int) -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Agent, "127.0.0.1", 0, backlog=64) for _ in range(count)]
    print(",".join(str(server.sockets[0].getsockname()[1]) for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))

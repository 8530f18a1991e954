"""Baseline of REST: a bare aiohttp server that returns the same bytes for every request."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web


async def serve(body: bytes) -> None:
    """Print the port and serve until the process is terminated."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    content = Path(sys.argv[1]).read_bytes()
    if sys.implementation.name == "cpython":
        import uvloop

        uvloop.run(serve(content))
    else:
        asyncio.run(serve(content))

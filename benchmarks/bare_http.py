"""A bare aiohttp server that answers every request with the same bytes: the floor that REST is compared with."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web


async def serve(answer: bytes) -> None:
    """Serves until the process is ended; prints the port."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=answer, content_type="application/json")

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

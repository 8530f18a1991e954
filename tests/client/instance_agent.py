"""An agent as a process: ``python instance_agent.py TARGET OPTIONS``, with ``OPTIONS`` as JSON.

It prints its name and each state of its registration, a line each, and ends the registration on SIGTERM.
"""

import asyncio
import json
import sys
from typing import Any

from aiohttp import web

from registry_client import RegistryClient, make_service


async def serve(port: int) -> None:
    """Answer health checks on a port."""
    application = web.Application()
    application.router.add_get("/health", lambda _: asyncio.sleep(0, web.Response()))
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def main(
    target: str, *, service: dict[str, Any], port: int = 0, reports: str = "", **registration_options: Any
) -> None:
    if port:
        await serve(port)
    registered = make_service(**service)
    client = RegistryClient(target, timeout=60)
    async with client, client.registration(registered, **registration_options) as me:
        me.on_change(lambda state: print(state.value, flush=True))
        print(me.name, me.state.value, flush=True)
        if reports:
            await me.report(reports)
            print("reported", flush=True)
        await asyncio.Event().wait()
    print("left", me.removed, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], **json.loads(sys.argv[2])))

"""An agent that reports ten times a second that it is degraded: ``python reporting_agent.py TARGET...``."""

import asyncio
import sys
from contextlib import suppress

from registry_client import RegistryClient, RegistryError, make_service


async def main(*targets: str) -> None:
    agent = make_service("agent", "http://agent.test", version="1.0.0", health_check="heartbeat", ttl=5)
    async with RegistryClient(targets) as client, client.registration(agent):
        while True:
            with suppress(RegistryError):
                await client.report_service_health("agent", "degraded", error="slow", timeout=5)
                print("reported", flush=True)
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""An agent that waits for SIGTERM: ``python sigterm_agent.py TARGET one|nested|tasks``."""

import asyncio
import sys

from registry_client import Registration, RegistryClient, make_service


def register(client: RegistryClient, name: str) -> Registration:
    return client.registration(make_service(name, "http://agent.test", version="1.0.0", health_check="heartbeat"))


async def wait_for_sigterm() -> None:
    print("ready", flush=True)
    await asyncio.Event().wait()


async def main(target: str, mode: str) -> None:
    async with RegistryClient(target) as client:
        match mode:
            case "one":
                async with register(client, "one") as me:
                    await wait_for_sigterm()
            case "nested":
                async with register(client, "one") as me, RegistryClient(target) as other, register(other, "two"):
                    await wait_for_sigterm()
            case _:
                async with register(client, "one") as me, asyncio.TaskGroup() as group:
                    group.create_task(serve(client, "two"))
                    await asyncio.Event().wait()
    print("continued", me.terminated)


async def serve(client: RegistryClient, name: str) -> None:
    async with register(client, name):
        await wait_for_sigterm()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

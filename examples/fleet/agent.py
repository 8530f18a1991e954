"""One agent of the fleet: ``python agent.py NAME ENDPOINT VERSION SOCKET``, started by rolling_update.py.

``SOCKET`` is the file descriptor of a listening socket that the deployer keeps open, as systemd does with socket
activation. The old and the new process of a name accept from the same queue, so that none of them can lose a
connection by closing its copy. A Service of Kubernetes or a load balancer has the same effect.
"""

import asyncio
import os
import socket
import sys

from registry_client import RegistrationState, RegistryClient, make_service

DRAIN_SECONDS = 10.0
WORK_SECONDS = 0.02


class Work:
    """Answers each connection with the version of this process, and counts the unfinished ones."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._finished = asyncio.Event()
        self._in_progress = 0

    async def answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._in_progress += 1
        try:
            await asyncio.sleep(WORK_SECONDS)
            writer.write(self._version.encode())
            await writer.drain()
        finally:
            writer.close()
            self._in_progress -= 1
            self._finished.set()

    async def finish(self) -> None:
        await asyncio.sleep(WORK_SECONDS)  # for connections that were accepted, but not answered yet
        while self._in_progress:
            self._finished.clear()
            await self._finished.wait()


async def main(name: str, endpoint: str, version: str, listener: str) -> None:
    work, superseded = Work(version), asyncio.Event()
    server = await asyncio.start_server(work.answer, sock=socket.socket(fileno=int(listener)))
    service = make_service(
        name, endpoint, version=version, group="fleet", capabilities=["work"], health_check="heartbeat", ttl=5
    )

    def on_change(state: RegistrationState) -> None:
        print(state.value, flush=True)
        if state is RegistrationState.SUPERSEDED:
            superseded.set()

    async def leave_to_successor() -> None:
        await superseded.wait()
        server.close()  # the new process accepts at the same endpoint
        await work.finish()
        print("idle", flush=True)

    leaving = asyncio.create_task(leave_to_successor())
    # ``timeout`` covers a registry that restarts. SIGTERM ends the block: the service drains, and is unregistered
    # unless another process has registered its name.
    async with (
        RegistryClient(os.environ["REGISTRY"], timeout=60) as client,
        client.registration(service, drain=DRAIN_SECONDS) as registration,
    ):
        registration.on_change(on_change)
        print("registered", flush=True)
        await asyncio.shield(leaving)  # SIGTERM cancels this line only
    server.close()
    await work.finish()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

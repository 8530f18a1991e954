"""One agent offers the capability `greet`, another discovers and calls it: `python quickstart.py [TARGET]`."""

import asyncio
import sys

from registry_client import RegistryClient, make_service


async def greeter(target: str) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    me = make_service("greeter", endpoint, version="1.0.0", capabilities=["greet"], health_check="heartbeat", ttl=5)
    async with RegistryClient(target) as client, client.registration(me, replicas=True):
        await server.serve_forever()


async def caller(target: str) -> None:
    async with RegistryClient(target) as client, client.cache(capability="greet") as cache:
        other = await asyncio.create_subprocess_exec(sys.executable, __file__, target, "greeter")
        try:
            while not cache.find("greet"):
                await cache.changed()
            host, port = cache.resolve("greet").endpoint.removeprefix("tcp://").split(":")
            reader, _ = await asyncio.open_connection(host, int(port))
            print("found and called:", (await reader.read()).decode())
        finally:
            other.kill()  # it cannot unregister: its lease expires, here after 5 seconds instead of the usual 30
        while cache.find("greet"):
            await cache.changed()
        print("killed and no longer found")


if __name__ == "__main__":
    asyncio.run((greeter if "greeter" in sys.argv else caller)([*sys.argv[1:2], "localhost:50051"][0]))

"""The floor: a bare aiohttp client loop over endpoints, one connection a request. ``… SECONDS TASKS PORT,PORT…``."""

import asyncio
import sys
import time

import aiohttp
import uvloop


async def _main(seconds: float, tasks: int, urls: list[str]) -> None:
    done = 0
    end = time.perf_counter() + seconds

    async def worker(session: aiohttp.ClientSession, i: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            async with session.get(urls[i % len(urls)], allow_redirects=False) as response:
                await response.read()
            done += 1
            i += tasks

    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(session, i) for i in range(tasks)))
        print(f"{done / (time.perf_counter() - start):.1f} {done / (time.process_time() - cpu):.1f}", flush=True)


if __name__ == "__main__":
    ports = sys.argv[3].split(",")
    uvloop.run(_main(float(sys.argv[1]), int(sys.argv[2]), [f"http://127.0.0.1:{port}/health" for port in ports]))

"""Baseline: a bare aiohttp client that requests endpoints in turn, with one connection per request.

``python -m benchmarks.bare_probes SECONDS PORTS TASKS [REQUESTS_PER_SECOND]`` prints the requests per second and per
second of processor time.
"""

import asyncio
import itertools
import sys
import time

import aiohttp
import uvloop


async def _main(seconds: float, urls: list[str], tasks: int, per_second: float) -> None:
    """Send requests with ``tasks`` concurrent tasks, or at a fixed rate if ``per_second`` is set."""
    done = 0
    start, cpu = time.perf_counter(), time.process_time()
    round_robin = itertools.cycle(urls)

    async def get(session: aiohttp.ClientSession) -> None:
        nonlocal done
        async with session.get(next(round_robin), allow_redirects=False) as response:
            await response.read()
        done += 1

    async def without_pause(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < start + seconds:
            await get(session)

    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        if not per_second:
            for _ in range(tasks):
                group.create_task(without_pause(session))
        for i in range(int(seconds * per_second)):
            await asyncio.sleep(max(0, start + i / per_second - time.perf_counter()))
            group.create_task(get(session))
    print(f"{done / (time.perf_counter() - start):.1f} {done / (time.process_time() - cpu):.1f}", flush=True)


if __name__ == "__main__":
    endpoints = [f"http://127.0.0.1:{port}/health" for port in sys.argv[2].split(",")]
    pace = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    uvloop.run(_main(float(sys.argv[1]), endpoints, int(sys.argv[3]), pace))

"""Fleets of 1,000 to 1,000,000 services on one worker: start-up time, memory and cost of calls."""

import argparse
import asyncio
import re
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis

from benchmarks import etcd, replay
from benchmarks.fleet import name_of, query, services
from benchmarks.processes import registry, served
from benchmarks.queries import fill
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import GetServiceRequest
from registry_server.model.document import encode_document_prefix
from registry_server.model.normal import apply_registration
from registry_server.runtime.clock import timestamp
from registry_server.store.keys import Keys

_SERVICE = "/ossa.registry.v1.RegistryService"
_SMALL = 1_000
_SIZES = (_SMALL, 10_000, 100_000, 1_000_000)
_REQUIRED_MEMORY_BYTES = 14 << 30  # the largest size is skipped if less is available
_REPAIRED_SIZE = 100_000
_REPAIR_TIMEOUT_SECONDS = 300
_BATCH = 1_000
_KEYS = Keys.under("ossa:services")
_MAX_ROUNDS = 3  # one size takes minutes
_LOAD = ("-seconds=2", "-in-flight=32")


class _Point(NamedTuple):
    """Results for one size."""

    size: int
    start: float
    """Seconds from the start of the process until it serves."""
    stall: float
    """Longest response time of the liveness endpoint during the start, in seconds."""
    worker: int
    """Resident memory of the worker in bytes."""
    redis: int
    """Resident memory of Redis in bytes."""
    query: float
    """Cost of a capability query relative to 1,000 services."""
    get: float
    """Cost of GetService relative to 1,000 services."""
    repair: float
    """Seconds until the registry has repaired an emptied Redis; 0 = not measured."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Fill Redis step by step and start a registry on it at each size."""
    if not replay.is_available() or shutil.which("redis-server") is None:
        report.skipped("Large fleets", "Go, for the load generator, and redis-server")
        return
    await replay.build()
    report.title("One worker, one Redis; costs relative to a registry of 1,000 services")
    points: list[_Point] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        client = await stack.enter_async_context(_redis(folder))
        (folder / "small").mkdir()
        small = await stack.enter_async_context(registry(folder / "small"))
        await fill(small, _SMALL)
        filled = 0
        for size in _SIZES:
            if size > 100_000 and _available_memory() < _REQUIRED_MEMORY_BYTES:
                report.line(f"{size:,} services", "skipped: not enough memory")
                break
            await _fill(client, filled, size)
            filled = size
            points.append(await _measure(folder, client, small, size, min(args.rounds, _MAX_ROUNDS)))
            one = points[-1]
            report.line(f"{size:,}: start, longest stall of liveness", f"{one.start:.1f} s {one.stall:.2f} s")
            report.line("  worker, Redis (MiB)", f"{one.worker >> 20:,} {one.redis >> 20:,}")
            report.line("  cost relative to 1,000: query, GetService", f"{one.query:.2f} {one.get:.2f}")
            if one.repair:
                report.line("  time to repair an emptied Redis", f"{one.repair:.1f} s")
    _compare_with_bounds(report, points)


def _compare_with_bounds(report: Report, points: list[_Point]) -> None:
    small = points[0]
    for one in points[2:]:
        added = (one.worker - small.worker) / (one.size - small.size) / 1024
        report.at_most(f"{one.size:,}: worker memory per service", added, 5, "KB")
        report.at_most(f"{one.size:,}: longest stall of liveness", one.stall, 1, "s")
        report.at_most(f"{one.size:,}: cost of a query relative to {small.size:,}", one.query, 1.2, "")
        report.at_most(f"{one.size:,}: cost of GetService relative to {small.size:,}", one.get, 1.2, "")
        if one.size == 100_000:
            report.at_most("100,000: start", one.start, 5, "s")
        else:
            report.at_most(f"{one.size:,}: worker and Redis", (one.worker + one.redis) / (1 << 30), 14, "GiB")
    largest = max(one.worker + one.redis for one in points)
    report.chart(
        "Memory of worker and Redis by number of services",
        [
            (f"{one.size:,}", (one.worker + one.redis) / largest, f"{one.worker + one.redis >> 20:,} MiB")
            for one in points
        ],
    )


async def _measure(folder: Path, client: Redis, small: str, size: int, rounds: int) -> _Point:
    http = etcd.free_port()
    flags = (f"--redis.url=unix://{folder}/redis.sock", f"--http.address=127.0.0.1:{http}")
    begin = time.perf_counter()
    stall = asyncio.create_task(_longest_stall(f"http://127.0.0.1:{http}/health/live"))
    async with served(folder, *flags) as one:
        start = time.perf_counter() - begin
        stall.cancel()
        await asyncio.wait([stall])
        query_cost, get_cost = [
            await _cost(small, one.grpc, method, requests, rounds) for method, requests in _requests(folder, size)
        ]
        worker = _resident(one.pid)
        memory = await client.info("memory")
        repair = await _repair_time(client, size) if size == _REPAIRED_SIZE else 0.0
    return _Point(size, start, stall.result(), worker, int(memory["used_memory_rss"]), query_cost, get_cost, repair)


async def _repair_time(client: Redis, size: int) -> float:
    """Empty Redis and return the seconds until the registry has restored everything."""
    begin = time.perf_counter()
    await client.flushall()
    async with asyncio.timeout(_REPAIR_TIMEOUT_SECONDS):
        while await client.hlen(_KEYS.records) < size or await client.zcard(_KEYS.leases) < size:  # noqa: ASYNC110 - Redis has no event for this
            await asyncio.sleep(0.05)
    return time.perf_counter() - begin


def _requests(folder: Path, size: int) -> list[tuple[str, dict[int, Path]]]:
    """Return the requests of the query and of the point read, for a fleet of 1,000 and for one of this size."""
    queries = replay.requests_file(folder / "queries", (query(i).SerializeToString() for i in range(10)))
    points = {
        count: replay.requests_file(
            folder / f"point-{count}",
            (GetServiceRequest(name=name_of(i)).SerializeToString() for i in range(0, count, count // _SMALL)),
        )
        for count in (_SMALL, size)
    }
    return [("DiscoverServices", dict.fromkeys(points, queries)), ("GetService", points)]


async def _cost(small: str, large: str, method: str, requests: dict[int, Path], rounds: int) -> float:
    """Return the cost of a call on a large fleet relative to a small one, measured in alternating rounds."""
    ratios = []
    for _ in range(rounds):
        rates = [
            (await replay.unary(address, f"{_SERVICE}/{method}", file, *_LOAD)).rate
            for address, file in ((small, requests[_SMALL]), (large, [*requests.values()][-1]))
        ]
        ratios.append(rates[0] / rates[1])
    return statistics.median(ratios)


async def _longest_stall(url: str) -> float:
    """Request a URL until cancelled and return the longest response time in seconds."""

    def response_time() -> float:
        begin = time.perf_counter()
        with suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=120):
            return time.perf_counter() - begin
        return 0.0  # the server does not listen yet

    longest = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            longest = max(longest, await asyncio.to_thread(response_time))
            await asyncio.sleep(0.02)
    return longest


async def _fill(client: Redis, start: int, end: int) -> None:
    """Write services to Redis in the store's format. Registering them would take a quarter of an hour."""
    now = timestamp(time.time_ns())
    remaining = islice(services(end), start, None)
    revision = start
    while batch := list(islice(remaining, _BATCH)):
        records: dict[Any, Any] = {}  # as redis-py types a mapping
        documents = {}
        template = apply_registration(batch[0], None, now)
        document = encode_document_prefix(template)
        for definition in batch:
            revision += 1
            service = apply_registration(definition, None, now)
            service.revision = revision
            records[service.name] = service.SerializeToString()
            named = document.replace(template.name.encode(), service.name.encode())
            documents[_KEYS.document_prefix + service.name] = b"%s%d}" % (named, revision)
        async with client.pipeline(transaction=False) as pipe:
            pipe.hset(_KEYS.records, mapping=records)
            pipe.hset(_KEYS.ttls, mapping=dict.fromkeys(records, 0))
            pipe.zadd(_KEYS.leases, dict.fromkeys(records, float("inf")))
            pipe.mset(documents)
            pipe.set(_KEYS.revision, revision)
            pipe.set(_KEYS.epoch, "bench", nx=True)
            await pipe.execute()


@asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[Redis]:
    """Run a Redis without persistence."""
    socket_path = folder / "redis.sock"
    child = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", "0", "--unixsocket", str(socket_path), "--save", "", "--dir", str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while not socket_path.exists():  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(0.02)
        async with Redis.from_url(f"unix://{socket_path}") as client:
            yield client
    finally:
        child.terminate()
        await child.wait()


def _resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def _available_memory() -> int:
    """Return the memory that is available on this machine, in bytes."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024

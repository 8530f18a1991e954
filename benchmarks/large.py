"""From 1,000 to 1,000,000 services on one worker: start, memory, and what calls cost."""

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
from typing import NamedTuple

from redis.asyncio import Redis

from benchmarks import etcd, replay
from benchmarks.fleet import MATCHES, query, services
from benchmarks.processes import process, served
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import GetServiceRequest
from registry_server.clock import timestamp
from registry_server.model.document import encode_document_open
from registry_server.model.normal import registered
from registry_server.store.keys import Keys

_SERVICE = "/ossa.registry.v1.RegistryService"
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_NEEDED = 14 << 30  # bytes free, or the largest size is left out
_BATCH = 1_000
_KEYS = Keys.under("ossa:services")
_LOAD = ("-seconds=2", "-in-flight=32")


class _Point(NamedTuple):
    """What was measured of one size."""

    size: int
    start: float
    """Seconds to serving."""
    stall: float
    """Seconds: the longest that liveness did not answer meanwhile."""
    worker: int
    """Bytes."""
    redis: int
    """Bytes."""
    query: float
    """Share of the rate of a bare echo of as many bytes."""
    get: float
    """The same."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Fills Redis step by step and starts a registry on it each time."""
    if not replay.is_available() or shutil.which("redis-server") is None:
        report.skipped("Large fleets", "Go, for the load generator, and redis-server")
        return
    await replay.build()
    report.title("One worker, one Redis; ratios to a bare echo of as many bytes")
    points: list[_Point] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        client = await stack.enter_async_context(_redis(folder))
        filled = 0
        for size in _SIZES:
            if size > 100_000 and _free() < _NEEDED:
                report.line(f"{size:,} services", "left out: memory")
                break
            await _fill(client, filled, size)
            filled = size
            points.append(await _measure(folder, client, size, args.rounds))
            one = points[-1]
            report.line(f"{size:,}: start, longest stall of liveness", f"{one.start:.1f} s {one.stall:.2f} s")
            report.line("  worker, Redis (MiB)", f"{one.worker >> 20:,} {one.redis >> 20:,}")
            report.line("  ratio to the echo: query, GetService", f"{one.query:.2f} {one.get:.2f}")
    _judge(report, points)


def _judge(report: Report, points: list[_Point]) -> None:
    small = points[0]
    for one in points[2:]:
        added = (one.worker - small.worker) / (one.size - small.size) / 1024
        report.at_most(f"{one.size:,}: memory of the worker a service", added, 5, "KB")
        report.at_most(f"{one.size:,}: longest stall of liveness", one.stall, 1, "s")
        report.at_most(f"{one.size:,}: cost of a query to that of {small.size:,}", small.query / one.query, 1.2, "")
        report.at_most(f"{one.size:,}: cost of GetService to that of {small.size:,}", small.get / one.get, 1.2, "")
        if one.size == 100_000:
            report.at_most("100,000: start", one.start, 5, "s")
        else:
            report.at_most(f"{one.size:,}: worker and Redis", (one.worker + one.redis) / (1 << 30), 14, "GiB")
    most = max(one.worker + one.redis for one in points)
    report.chart(
        "Memory of worker and Redis together, by services",
        [(f"{one.size:,}", (one.worker + one.redis) / most, f"{one.worker + one.redis >> 20:,} MiB") for one in points],
    )


async def _measure(folder: Path, client: Redis, size: int, rounds: int) -> _Point:
    point = replay.requests_file(
        folder / "point", (GetServiceRequest(name=one.name).SerializeToString() for one in services(1_000))
    )
    asked = replay.requests_file(folder / "asked", (query(i).SerializeToString() for i in range(10)))
    http = etcd.free_port()
    flags = (f"--redis.url=unix://{folder}/redis.sock", f"--http.address=127.0.0.1:{http}")
    begin = time.perf_counter()
    looking = asyncio.create_task(_longest_stall(f"http://127.0.0.1:{http}/health/live"))
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(served(folder, *flags))
        start = time.perf_counter() - begin
        looking.cancel()
        await asyncio.wait([looking])
        echoes = []
        for method, requests in (("DiscoverServices", asked), ("GetService", point)):
            answer = folder / method
            first = requests.read_bytes()[4:]
            request = first[: int.from_bytes(requests.read_bytes()[:4], "big")]
            answer.write_bytes(await etcd.call(one.grpc, f"{_SERVICE}/{method}", request))
            port = await stack.enter_async_context(process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(answer)))
            echoes.append((method, requests, f"127.0.0.1:{port}"))
        assert len((folder / "DiscoverServices").read_bytes()) > MATCHES * 100
        ratios: dict[str, list[float]] = {method: [] for method, _, _ in echoes}
        for _ in range(rounds):
            for method, requests, echo in echoes:
                bare = await replay.unary(echo, "/bare/Echo", requests, *_LOAD)
                ours = await replay.unary(one.grpc, f"{_SERVICE}/{method}", requests, *_LOAD)
                ratios[method].append(ours.rate / bare.rate)
        worker = _resident(one.pid)
    memory = await client.info("memory")
    return _Point(
        size,
        start,
        looking.result(),
        worker,
        int(memory["used_memory_rss"]),
        statistics.median(ratios["DiscoverServices"]),
        statistics.median(ratios["GetService"]),
    )


async def _longest_stall(url: str) -> float:
    """Asks until it is cancelled; gives the seconds of the answer that took longest, once there was one."""

    def ask() -> float:
        begin = time.perf_counter()
        with suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=120):
            return time.perf_counter() - begin
        return 0.0  # it does not listen yet

    longest = 0.0
    with suppress(asyncio.CancelledError):
        while True:
            longest = max(longest, await asyncio.to_thread(ask))
            await asyncio.sleep(0.02)
    return longest


async def _fill(client: Redis, start: int, end: int) -> None:
    """Adds services in the store's own format: as registered by itself, which would take a quarter of an hour."""
    now = timestamp(time.time_ns())
    rest = islice(services(end), start, None)
    revision = start
    while batch := list(islice(rest, _BATCH)):
        records, documents = {}, {}
        template = registered(batch[0], None, now)
        document = encode_document_open(template)
        for sent in batch:
            revision += 1
            service = registered(sent, None, now)
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
    """Runs a Redis that keeps nothing on disk."""
    at = folder / "redis.sock"
    child = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", "0", "--unixsocket", str(at), "--save", "", "--dir", str(folder)),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(20):
            while not at.exists():  # noqa: ASYNC110 - a file has no event to wait for
                await asyncio.sleep(0.02)
        async with Redis.from_url(f"unix://{at}") as client:
            yield client
    finally:
        child.terminate()
        await child.wait()


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def _free() -> int:
    found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024

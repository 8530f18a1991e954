"""The catalog in one process: loading, memory, and discovery without the network."""

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

from benchmarks.fleet import MATCHES, name_of, query, services
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, DiscoverServicesResponse
from registry_server.app import open_parts
from registry_server.config import HealthCheckSettings, LogSettings, Settings
from registry_server.model.filters import compile_filter
from registry_server.model.requests import MAX_PAGE_SIZE
from registry_server.model.tokens import encode_page_token
from registry_server.registry import ServiceRegistry
from registry_server.runtime.tasks import cancel

_BATCH = 500
_SWEPT_PAGES = 20_000


async def run(report: Report, args: argparse.Namespace) -> None:
    """Register a fleet, start a second registry on its data, and query it."""
    count: int = args.services
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        settings = Settings(
            data_dir=Path(folder),
            health_check=HealthCheckSettings(enabled=False),
            log=LogSettings(audit="off"),  # audit lines would mix with the results
        )
        report.title(f"Catalog of {count:,} services in one process")
        async with open_parts(settings) as parts:
            await parts.loaded.wait()
            start = time.perf_counter()
            fleet = services(count)
            while batch := list(islice(fleet, _BATCH)):
                failed = [
                    result for result in await parts.registry.register_batch(batch) if isinstance(result, Exception)
                ]
                assert not failed, failed[0]
            report.line(
                "registration rate (batches of 500, embedded)", f"{count / (time.perf_counter() - start):,.0f}/s"
            )
        gc.unfreeze()
        gc.collect()
        before, start = _resident(), time.perf_counter()
        async with open_parts(settings) as parts:
            redis_up = time.perf_counter()
            await parts.loaded.wait()
            loaded = time.perf_counter()
            report.line("embedded Redis loads its file", f"{redis_up - start:.2f} s")
            report.at_most(f"load {count:,} services", loaded - redis_up, 5, "s")
            gc.collect()
            report.at_most("memory per service", (_resident() - before) / count / 1024, 5, "KB")
            await _discovery(report, parts.registry, count)
            await _stall(report, parts.registry)


async def _discovery(report: Report, registry: ServiceRegistry, count: int) -> None:
    async def discover(wire: bytes) -> bytes:
        page = registry.cached_page(wire)
        if page is None:
            page = await registry.find_page(DiscoverServicesRequest.FromString(wire), wire=wire)
        return page.wire()

    queries = [query(i).SerializeToString() for i in range(min(400, count // (2 * MATCHES)))]
    uncached = []
    for wire in queries:
        start = time.perf_counter()
        answer = await discover(wire)
        uncached.append(time.perf_counter() - start)
        assert len(DiscoverServicesResponse.FromString(answer).services) == MATCHES
    cached = []
    for wire in queries * 20:
        start = time.perf_counter()
        await discover(wire)
        cached.append(time.perf_counter() - start)
    label = f"capability + health + tag, {MATCHES} services"
    report.at_most(f"{label}, uncached, p50", statistics.median(uncached) * 1000, 2, "ms")
    report.at_most(f"{label}, cached, p50", statistics.median(cached) * 1e6, 50, "us")
    await asyncio.sleep(0)


async def _stall(report: Report, registry: ServiceRegistry) -> None:
    """Cache many pages that show one service, change it, and report the longest turn of the event loop."""
    longest = 0.0

    async def observe() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    name = name_of(1)
    request = DiscoverServicesRequest()
    request.filter.group = name  # by default, each service is its own group: every page shows the changed service
    scope = compile_filter(request.filter, "filter", []).key
    observer = asyncio.create_task(observe())
    wires = []
    for i in range(_SWEPT_PAGES):
        request.page_size = i % MAX_PAGE_SIZE + 1
        secret = registry._replica.secret  # noqa: SLF001 - forged, because no client asks for so many pages
        request.page_token = encode_page_token(secret, scope, f"A{i // MAX_PAGE_SIZE}")
        wires.append(request.SerializeToString())
        page = await registry.find_page(request, wire=wires[-1])
        assert page.total_size == 1
        await asyncio.sleep(0)
    assert all(map(registry.cached_page, (wires[0], wires[-1])))
    changed = (await registry.get(name)).message()
    changed.version = "2.2.0"
    await registry.register(changed)
    await asyncio.sleep(0)
    await cancel([observer])
    assert not any(map(registry.cached_page, wires))
    report.at_most(f"longest stall, {_SWEPT_PAGES:,} cached pages become outdated", longest * 1000, 50, "ms")


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096

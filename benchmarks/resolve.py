"""``ServiceCache.resolve`` in process, compared with an equivalent unary ``DiscoverServices``."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fleet import MATCHES, services
from benchmarks.processes import registry
from benchmarks.report import Report
from registry_client import Policy, RegistryClient, Service, ServiceCache

_FLEET = 10_000
_PICKS = 100_000
_CALLS = 200
_CAPABILITY = "capability-3"


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure both in alternating rounds."""
    report.title(f"ServiceCache.resolve, {MATCHES} services of {_FLEET:,} in the cache, compared with DiscoverServices")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        async with registry(Path(folder)) as target, RegistryClient(target, timeout=60) as client:
            fleet = list(services(_FLEET))
            for start in range(0, _FLEET, 500):
                await client.batch_register_services(fleet[start : start + 500])
            begin = time.perf_counter()
            async with client.cache() as cache:
                report.line("time until the cache is loaded", f"{time.perf_counter() - begin:.2f} s")
                await _measure(report, args, client, cache)


async def _measure(report: Report, args: argparse.Namespace, client: RegistryClient, cache: ServiceCache) -> None:
    assert len(cache) == _FLEET
    ways: dict[str, Callable[[], Service]] = {
        "round robin": lambda: cache.resolve(_CAPABILITY),
        "round robin, version and labels": lambda: cache.resolve(_CAPABILITY, version="^2", labels={"region": "eu"}),
        "least response time": lambda: cache.resolve(_CAPABILITY, policy=Policy.LEAST_RESPONSE_TIME),
        "weighted random": lambda: cache.resolve(_CAPABILITY, policy=Policy.WEIGHTED_RANDOM),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ratios = []
    for _ in range(args.rounds):
        for name, pick in ways.items():
            rates[name].append(_picks(pick))
        calls = await _calls(client)
        ratios.append(rates["round robin"][-1] / calls)
        report.line("round robin, DiscoverServices", f"{rates['round robin'][-1]:,.0f}/s {calls:,.0f}/s")
    for name, measured in rates.items():
        if name == "round robin":
            report.at_least(f"{name}, median", statistics.median(measured), 300_000, "/s")
        else:
            report.line(f"{name}, median", f"{statistics.median(measured):,.0f}/s")
    report.line("ratio of round robin to DiscoverServices, median", f"{statistics.median(ratios):,.0f}")


def _picks(pick: Callable[[], Service]) -> float:
    start = time.perf_counter()
    for _ in range(_PICKS):
        pick()
    return _PICKS / (time.perf_counter() - start)


async def _calls(client: RegistryClient) -> float:
    """Return the rate of one caller that makes one call after another."""
    start = time.perf_counter()
    for _ in range(_CALLS):
        await client.discover_services(capability=_CAPABILITY, health="healthy", page_size=MATCHES)
    return _CALLS / (time.perf_counter() - start)

"""REST: reads compared with a bare aiohttp handler of the same bytes, writes with the earlier version."""

import argparse
import asyncio
import gzip
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import http_load, previous
from benchmarks.fleet import MATCHES, services
from benchmarks.http_load import request
from benchmarks.processes import Served, cpu_seconds, process, served
from benchmarks.report import Report
from registry_server.model.document import service_document

_FLEET = 1_000
_SECONDS = 3
_CONNECTIONS = 32
_WRITE_CONNECTIONS = 64
_WRITES = 2_000
_LARGE_FLEET = 10_000
_PAGE = 1_000
_MEGABYTE = 1e6
_MICROSECONDS = 1e6
_BASE = "/api/v1/registry"
_LIST = f"{_BASE}/services?capability=capability-3&pageSize={MATCHES}"


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure reads beside a bare handler, and writes beside the earlier version, in alternating rounds."""
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with served(folder / "registry") as ours:
            fleet = [service_document(service) for service in services(_FLEET)]
            await _register(ours, fleet)
            report.title(f"Reads, {_FLEET:,} services; load from {_generator()}")
            one = f"{_BASE}/services/{fleet[0]['name']}"
            for label, path in (("one service", one), (f"list of {MATCHES}", _LIST), ("health", f"{_BASE}/health")):
                await _read(report, ours.http, label, path, folder, args.rounds)
            if await previous.is_available():
                async with previous.served_previous(folder / "previous") as earlier:
                    await _register(earlier, fleet)
                    report.title(f"Writes, {_WRITE_CONNECTIONS} connections")
                    await _heartbeats(report, ours, earlier, fleet, args.rounds)
                    await _registrations(report, ours, earlier, args.rounds)
            else:
                report.skipped("Writes", f"commit {previous.BASELINE[:7]} of the history")
            await _register(ours, [service_document(each) for each in islice(services(_LARGE_FLEET), _FLEET, None)])
            report.title(f"All {_LARGE_FLEET:,} services in pages of {_PAGE:,}, compressed")
            report.at_most("transferred", await _fetch_all(ours.http) / _MEGABYTE, 0.6, " MB")


async def _register(server: Served, fleet: Sequence[dict[str, Any]]) -> float:
    """Register services and return the rate."""
    requests = [request("POST", f"{_BASE}/services", json.dumps(each).encode()) for each in fleet]
    return await http_load.rate(server.http, requests, _WRITE_CONNECTIONS)


async def _read(report: Report, address: str, label: str, path: str, folder: Path, rounds: int) -> None:
    async with aiohttp.ClientSession(f"http://{address}") as session, session.get(path) as response:
        answer = await response.read()
    (folder / "answer").write_bytes(answer)
    async with process(r"(\d+)", r"\d", "-m", "benchmarks.bare_http", str(folder / "answer")) as port:
        ratios = []
        for _ in range(rounds):
            bare = await _rate(f"http://127.0.0.1:{port}{path}")
            own = await _rate(f"http://{address}{path}")
            ratios.append(own / bare)
            report.line(f"{label}, {len(answer):,} bytes: bare handler, registry", f"{bare:,.0f}/s {own:,.0f}/s")
    report.at_least(f"{label}: ratio to the bare handler, median", statistics.median(ratios), 0.75)


async def _heartbeats(
    report: Report, ours: Served, earlier: Served, fleet: Sequence[dict[str, Any]], rounds: int
) -> None:
    requests = [request("POST", f"{_BASE}/services/{each['name']}/heartbeat") for each in fleet] * 4
    ratios = []
    for _ in range(rounds):
        then, now = [await http_load.rate(each.http, requests, _WRITE_CONNECTIONS) for each in (earlier, ours)]
        ratios.append(now / then)
        report.line("heartbeats one by one: earlier version, now", f"{then:,.0f}/s {now:,.0f}/s")
    report.at_least("heartbeats: ratio to the earlier version, median", statistics.median(ratios), 1.4)


async def _registrations(report: Report, ours: Served, earlier: Served, rounds: int) -> None:
    ratios = []
    for i in range(rounds):
        fleet = [service_document(each) | {"name": f"new-{i}-{n}"} for n, each in enumerate(services(_WRITES))]
        costs = []
        for server in (earlier, ours):
            before = cpu_seconds(server.pid)
            await _register(server, fleet)
            costs.append((cpu_seconds(server.pid) - before) / _WRITES * _MICROSECONDS)
        ratios.append(costs[1] / costs[0])
        report.line("registrations: CPU a call, earlier version, now", f"{costs[0]:.0f} us {costs[1]:.0f} us")
    ratio = statistics.median(ratios)
    report.at_most("registrations: CPU, ratio to the earlier version, median", ratio, 0.6, "")


async def _fetch_all(address: str) -> int:
    """Fetch all services page by page and return the bytes of the bodies."""
    size, token = 0, ""
    async with aiohttp.ClientSession(f"http://{address}", auto_decompress=False) as session:
        while True:
            parameters = {"name": "^agent-", "pageSize": str(_PAGE)} | ({"pageToken": token} if token else {})
            headers = {"Accept-Encoding": "gzip"}
            async with session.get(f"{_BASE}/services", params=parameters, headers=headers) as response:
                body = await response.read()
            size += len(body)
            token = json.loads(gzip.decompress(body))["data"]["nextPageToken"]
            if not token:
                return size


def _generator() -> str:
    return (
        "h2load" if shutil.which("h2load") else "a Python client (h2load is not installed: the ratio is too favourable)"
    )


async def _rate(url: str) -> float:
    """Send requests on 32 connections and return the requests per second."""
    if shutil.which("h2load"):
        return await _h2load(url)
    return await _python(url)


async def _h2load(url: str) -> float:
    command = ("h2load", "--h1", f"--duration={_SECONDS}", "--warm-up-time=1", f"--clients={_CONNECTIONS}", url)
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await child.communicate())[0].decode()
    found = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    failed = re.search(r"(\d+) failed, (\d+) errored", output)
    good = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", output)
    assert found, output
    assert failed, output
    assert failed.groups() == ("0", "0"), output
    assert good, output
    return float(found[1])


async def _python(url: str) -> float:
    async with aiohttp.ClientSession() as session:
        end = time.perf_counter() + _SECONDS
        requests = 0

        async def reader() -> None:
            nonlocal requests
            while time.perf_counter() < end:
                async with session.get(url) as response:
                    await response.read()
                requests += 1

        start = time.perf_counter()
        await asyncio.gather(*(reader() for _ in range(_CONNECTIONS)))
        return requests / (time.perf_counter() - start)

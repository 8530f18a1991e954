"""``GET /services?capability=`` (cached) over REST, compared with a bare aiohttp handler of the same bytes."""

import argparse
import asyncio
import re
import shutil
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import aiohttp

from benchmarks.fleet import MATCHES, services
from benchmarks.processes import process
from benchmarks.report import Report
from registry_server.model.document import service_document

_FLEET = 1_000
_SECONDS = 3
_CONNECTIONS = 32
_BASE = "/api/v1/registry"
_PATH = f"{_BASE}/services?capability=capability-3&pageSize={MATCHES}"


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure both in alternating rounds."""
    report.title(f"GET /services, cached, {MATCHES} services of {_FLEET:,}; load from {_generator()}")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        flags = (
            "--grpc.address=127.0.0.1:0",
            "--http.address=127.0.0.1:0",
            "--log.format=json",
            f"--data-dir={folder}/data",
        )
        address_pattern = r'"event": "HTTP listening", "address": "([^"]+)"'
        async with process(address_pattern, "ossa-registry serves", "-m", "registry_server", *flags) as address:
            response = await _register_fleet(address)
            (Path(folder) / "answer").write_bytes(response)
            async with process(r"(\d+)", r"\d", "-m", "benchmarks.bare_http", str(Path(folder) / "answer")) as port:
                ratios = []
                for _ in range(args.rounds):
                    bare = await _rate(f"127.0.0.1:{port}")
                    cached = await _rate(address)
                    ratios.append(cached / bare)
                    report.line(f"{len(response):,} bytes: bare handler, registry", f"{bare:,.0f}/s {cached:,.0f}/s")
    report.at_least("ratio to the bare handler, median", statistics.median(ratios), 0.7)


async def _register_fleet(address: str) -> bytes:
    """Register the fleet and return the response that is measured."""
    async with aiohttp.ClientSession(f"http://{address}") as session:

        async def register(document: object) -> None:
            async with session.post(f"{_BASE}/services", json=document) as response:
                assert response.status == 201, await response.text()

        fleet = services(_FLEET)
        while batch := list(islice(fleet, _CONNECTIONS)):
            await asyncio.gather(*(register(service_document(service)) for service in batch))
        async with session.get(_PATH) as response:
            answer = await response.read()
            assert len((await response.json())["data"]["services"]) == MATCHES
    return answer


def _generator() -> str:
    return (
        "h2load" if shutil.which("h2load") else "a Python client (h2load is not installed: the ratio is too favourable)"
    )


async def _rate(address: str) -> float:
    """Send requests on 32 connections and return the requests per second."""
    if shutil.which("h2load"):
        return await _h2load(f"http://{address}{_PATH}")
    return await _python(f"http://{address}{_PATH}")


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

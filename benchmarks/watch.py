"""Latency from a commit on one server process to a watcher on another, both on one Redis."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import grpc

from benchmarks.fleet import services
from benchmarks.processes import registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import RegisterServiceRequest, RegisterServiceResponse, WatchEventsRequest
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

_CHANGES = 300


async def run(report: Report, _: argparse.Namespace) -> None:
    """Register services on one process while watching on the other."""
    report.title("Watch: committed through one process, received from another")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with (
            registry(folder) as one,
            registry(folder, f"--redis.url=unix://{folder}/data/redis.sock") as other,
            grpc.aio.insecure_channel(one) as writing,
            grpc.aio.insecure_channel(other) as reading,
        ):
            stream = RegistryServiceStub(reading).WatchEvents(WatchEventsRequest())
            await stream.read()  # the first message confirms that the watch is established
            writer = RegistryServiceStub(writing)
            answered, received = [], []
            for service in services(_CHANGES):
                start = time.perf_counter()
                write = asyncio.create_task(_timed(writer.RegisterService(RegisterServiceRequest(service=service))))
                await stream.read()
                received.append(time.perf_counter() - start)
                answered.append(await write - start)
            stream.cancel()
    path = "registration on one process to event on the other"
    report.line("RegisterService latency, p50", f"{statistics.median(answered) * 1000:.2f} ms")
    report.at_most(f"{path}, p50", statistics.median(received) * 1000, 50, "ms")
    report.at_most(
        f"{path}, p99",
        statistics.quantiles(received, n=100)[98] * 1000,
        50,
        "ms",
    )


async def _timed(call: "grpc.aio.UnaryUnaryCall[RegisterServiceRequest, RegisterServiceResponse]") -> float:
    await call
    return time.perf_counter()

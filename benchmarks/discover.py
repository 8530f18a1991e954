"""``DiscoverServices`` (cached) over gRPC, beside a bare grpc.aio echo of the same bytes."""

import argparse
import statistics
import tempfile
from pathlib import Path

import grpc

from benchmarks.fleet import MATCHES, query, services
from benchmarks.load import generator, rate
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    DiscoverServicesRequest,
    DiscoverServicesResponse,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

_SERVICE = "/ossa.registry.v1.RegistryService"
_METHOD = f"{_SERVICE}/DiscoverServices"
_FLEET = 1_000
_SECONDS = 3


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measures both in turn."""
    report.title(f"DiscoverServices, cached, {MATCHES} services of {_FLEET:,}; load from {generator()}")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        async with registry(Path(folder)) as ours:
            request = query(3).SerializeToString()
            answer = await _filled(ours, request)
            (Path(folder) / "answer").write_bytes(answer)
            async with process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(Path(folder) / "answer")) as port:
                echo = f"127.0.0.1:{port}"
                ratios = []
                for _ in range(args.rounds):
                    bare = await rate(echo, "/bare/Echo", request, _SECONDS)
                    cached = await rate(ours, _METHOD, request, _SECONDS)
                    ratios.append(cached / bare)
                    report.line(f"{len(answer):,} bytes: echo, ours", f"{bare:,.0f}/s {cached:,.0f}/s")
    report.at_least("ratio to the bare echo, median", statistics.median(ratios), 0.9)


async def _filled(address: str, request: bytes) -> bytes:
    """Registers the fleet; gives the answer that is measured."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        fleet = list(services(_FLEET))
        for start in range(0, len(fleet), 500):
            await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet[start : start + 500]))
        answer = (await stub.DiscoverServices(DiscoverServicesRequest.FromString(request))).SerializeToString()
    assert len(DiscoverServicesResponse.FromString(answer).services) == MATCHES
    return answer

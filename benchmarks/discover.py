"""``DiscoverServices`` (cached) over gRPC, compared with a bare grpc.aio echo of the same bytes."""

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
from registry_server.security.keys import hash_text, new_key

_SERVICE = "/ossa.registry.v1.RegistryService"
_METHOD = f"{_SERVICE}/DiscoverServices"
_FLEET = 1_000
_SECONDS = 3


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure echo and registry, without and with an API key, in alternating rounds."""
    report.title(f"DiscoverServices, cached, {MATCHES} services of {_FLEET:,}; load from {generator()}")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        key = new_key()
        policy = Path(folder) / "policy.yaml"
        policy.write_text(f"api_keys:\n- {{name: bench, role: admin, hashes: ['{hash_text(key)}']}}\n")
        async with (
            registry(Path(folder) / "open") as unguarded,
            registry(Path(folder) / "guarded", f"--security.policy-file={policy}") as guarded,
        ):
            request = query(3).SerializeToString()
            answer = await _register_fleet(unguarded, request)
            await _register_fleet(guarded, request, key)
            (Path(folder) / "answer").write_bytes(answer)
            async with process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(Path(folder) / "answer")) as port:
                echo = f"127.0.0.1:{port}"
                ratios, with_key = [], []
                for _ in range(args.rounds):
                    bare = await rate(echo, "/bare/Echo", request, _SECONDS)
                    cached = await rate(unguarded, _METHOD, request, _SECONDS)
                    authenticated = await rate(guarded, _METHOD, request, _SECONDS, key)
                    ratios.append(cached / bare)
                    with_key.append(authenticated / bare)
                    rates = f"{bare:,.0f}/s {cached:,.0f}/s {authenticated:,.0f}/s"
                    report.line(f"{len(answer):,} bytes: echo, registry, registry with an API key", rates)
    report.at_least("ratio to the bare echo, median", statistics.median(ratios), 0.9)
    report.at_least("ratio with an API key, median", statistics.median(with_key), 0.8)


async def _register_fleet(address: str, request: bytes, key: str = "") -> bytes:
    """Register the fleet and return the response that is measured."""
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        fleet = list(services(_FLEET))
        for start in range(0, len(fleet), 500):
            batch = BatchRegisterServicesRequest(services=fleet[start : start + 500])
            await stub.BatchRegisterServices(batch, metadata=metadata)
        found = await stub.DiscoverServices(DiscoverServicesRequest.FromString(request), metadata=metadata)
        answer = found.SerializeToString()
    assert len(DiscoverServicesResponse.FromString(answer).services) == MATCHES
    return answer

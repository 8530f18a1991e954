"""Gain from a second worker, compared with the gain from a second bare echo on the same port, and with etcd."""

import argparse
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from benchmarks import etcd, replay
from benchmarks.fleet import services
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import BatchRegisterServicesRequest, GetServiceRequest
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

_METHOD = "/ossa.registry.v1.RegistryService/GetService"
_FLEET = 500
# Many connections, so that the kernel distributes them evenly over the processes.
_LOAD = ("-seconds=3", "-in-flight=64", "-connections=32")


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure one and two processes of each in alternating rounds."""
    if not replay.is_available():
        report.skipped("Workers", "Go, for the load generator")
        return
    await replay.build()
    report.title("GetService with one and two workers, compared with one and two bare echoes on one port, and etcd")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        (folder / "answer").write_bytes(next(services(1)).SerializeToString())
        echo = ("-m", "benchmarks.echo", str(folder / "answer"))
        one_echo = await stack.enter_async_context(process(r"(\d+)", r"\d", *echo))
        two_echoes = await stack.enter_async_context(process(r"(\d+)", r"\d", *echo))
        await stack.enter_async_context(process(r"(\d+)", r"\d", *echo, two_echoes))
        registries = []
        for workers in (1, 2):
            (folder / str(workers)).mkdir()
            registries.append(await stack.enter_async_context(registry(folder / str(workers), f"--workers={workers}")))
            await _fill(registries[-1])
        requests = replay.requests_file(
            folder / "requests", (GetServiceRequest(name=one.name).SerializeToString() for one in services(_FLEET))
        )
        etcd_address = await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else ""
        if etcd_address:
            await etcd.fill(etcd_address, ((one.name, one.SerializeToString()) for one in services(_FLEET)))
        keys = replay.requests_file(folder / "keys", (etcd.get(one.name) for one in services(_FLEET)))
        bare_gains, gains, etcd_ratios = [], [], []
        for _ in range(args.rounds):
            rates = []
            for address, method in (
                (f"127.0.0.1:{one_echo}", "/bare/Echo"),
                (f"127.0.0.1:{two_echoes}", "/bare/Echo"),
                *((address, _METHOD) for address in registries),
            ):
                rates.append((await replay.unary(address, method, requests, *_LOAD)).rate)
            bare_gains.append(rates[1] / rates[0])
            gains.append(rates[3] / rates[2])
            if etcd_address:
                rates.append((await replay.unary(etcd_address, etcd.RANGE, keys, *_LOAD)).rate)
                etcd_ratios.append(rates[3] / rates[4])
            label = "1 echo, 2 echoes; 1 worker, 2 workers; etcd (calls/s)"
            report.line(label, " ".join(f"{rate:,.0f}" for rate in rates))
    report.line("gain from a second echo, a second worker, median", f"{_median(bare_gains):.2f} {_median(gains):.2f}")
    ratio = _median([own / bare for own, bare in zip(gains, bare_gains, strict=True)])
    report.at_least("ratio of the gains, median", ratio, 0.9)
    if etcd_ratios:
        report.line("two workers: ratio to etcd's point read, median", f"{_median(etcd_ratios):.2f}")


def _median(values: list[float]) -> float:
    return statistics.median(values)


async def _fill(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        request = BatchRegisterServicesRequest(services=services(_FLEET))
        await RegistryServiceStub(channel).BatchRegisterServices(request)

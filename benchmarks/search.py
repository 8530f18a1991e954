"""Search by text: relevance on a prepared set, and cost in one process, without the network."""

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from benchmarks.report import Report
from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service, ServiceFilter
from registry_server.catalog import Change, Discovery, Loads, Replica, Search
from registry_server.model.filters import EVERYTHING, compile_filter
from registry_server.model.record import Record
from registry_server.runtime.clock import system_clock
from registry_server.runtime.tasks import cancel
from registry_server.store import Position

_FOLDER: Final = Path(__file__).parent / "relevance"
_RESULTS: Final = 10
_AGENTS: Final = [json.loads(line) for line in (_FOLDER / "agents.jsonl").read_text(encoding="utf-8").splitlines()]
_QUERIES: Final = [json.loads(line) for line in (_FOLDER / "queries.jsonl").read_text(encoding="utf-8").splitlines()]


async def run(report: Report, args: argparse.Namespace) -> None:
    report.title(f"Relevance of {len(_QUERIES)} queries over {len(_AGENTS)} agents")
    search = _search(len(_AGENTS))[1]
    for which in ("tuning", "held-out"):
        recall, gain = await _relevance(search, [query for query in _QUERIES if query["set"] == which])
        report.at_least(f"{which} half: recall@5", recall, 0.9)
        report.at_least(f"{which} half: nDCG@10", gain, 0.8)
    count: int = args.services
    report.title(f"Cost with {count:,} services")
    gc.collect()
    before = _resident()
    replica, search = _search(count)
    gc.collect()
    loaded, start = _resident(), time.perf_counter()
    stalls: list[float] = []
    observer = asyncio.create_task(_observe(stalls))
    found = await search.find("translate", EVERYTHING, _RESULTS)
    while found.stale and search.pending:
        found = await search.find("translate", EVERYTHING, _RESULTS)
    report.line("the first search fills the index", f"{time.perf_counter() - start:.1f} s")
    gc.collect()
    report.line("memory of the index per service", f"{(_resident() - loaded) / count / 1024:.2f} KB")
    report.at_most("memory per service in all", (_resident() - before) / count / 1024, 4, "KB")
    production = compile_filter(ServiceFilter(environment="production"), "filter", [])
    for label, filter_ in (("all services", EVERYTHING), ("half of them, by a filter", production)):
        report.at_most(f"search among {label}, p50", await _latency(search, filter_), 3, "ms")
    stalls.clear()
    await asyncio.gather(*(search.find(query["query"], EVERYTHING, _RESULTS) for query in _QUERIES))
    await cancel([observer])
    report.at_most("longest turn of the event loop in searches", max(stalls) * 1000, 10, "ms")
    await _change(report, replica, search)


async def _relevance(search: Search, queries: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return recall@5 and nDCG@10 with gains of 2**grade - 1."""
    recalls, gains = [], []
    for query in queries:
        grades: dict[str, int] = query["relevant"]
        found = [hit.record.name for hit in (await search.find(query["query"], EVERYTHING, _RESULTS)).hits]
        recalls.append(len(grades.keys() & set(found[:5])) / len(grades))
        ideal = _gain(sorted(grades.values(), reverse=True))
        gains.append(_gain([grades.get(name, 0) for name in found]) / ideal)
    return statistics.mean(recalls), statistics.mean(gains)


def _gain(grades: Sequence[int]) -> float:
    return sum((2.0**grade - 1) / log2(rank + 2) for rank, grade in enumerate(grades))


async def _latency(search: Search, filter_: Any) -> float:
    times = []
    for query in _QUERIES * 5:
        start = time.perf_counter()
        await search.find(query["query"], filter_, _RESULTS)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def _change(report: Report, replica: Replica, search: Search) -> None:
    times = []
    for i in range(100):
        record = _record(i, f"agent-{i:05}-zebrafish", "Counts zebrafish in an aquarium")
        revision = replica.revision + 1
        type_, reason = EventType.EVENT_TYPE_SERVICE_REGISTERED, EventReason.EVENT_REASON_CLIENT_REQUEST
        start = time.perf_counter()
        replica.apply_change(Change(revision=revision, type=type_, reason=reason, at_ms=1, before=None, after=record))
        assert record.name in {hit.record.name for hit in (await search.find("zebrafish", EVERYTHING, 100)).hits}
        times.append(time.perf_counter() - start)
    report.at_most("a change is found within, longest of 100", max(times), 1, "s")


def _search(count: int) -> tuple[Replica, Search]:
    """Return a search over ``count`` services: the agents of the relevance set, repeated with other names."""
    replica = Replica(1_000)
    for i in range(count):
        copy = i // len(_AGENTS)
        replica.load_records([_record(i, f"{_AGENTS[i % len(_AGENTS)]['name']}" + (f"-{copy}" if copy else ""))])
    replica.start_at((), Position("epoch", count))
    discovery = Discovery(replica)
    discovery.set_stale(stale=False)
    return replica, Search(replica, discovery, Loads(replica, default_ttl=300, clock=system_clock))


def _record(i: int, name: str, description: str = "") -> Record:
    # The set has fields of a later version of the protocol.
    service = ParseDict(_AGENTS[i % len(_AGENTS)], Service(), ignore_unknown_fields=True)
    service.name = service.group = name
    service.metadata.environment = "production" if i % 2 else "staging"
    service.metadata.description = description or service.metadata.description
    service.health.status = HealthStatus.HEALTH_STATUS_HEALTHY
    service.revision = i + 1
    return Record(service.SerializeToString())


async def _observe(stalls: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        stalls.append(now - last)
        last = now


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096

"""The Grafana dashboard is the output of its script, and a real Prometheus evaluates each of its expressions."""

import json
import re
from pathlib import Path
from typing import Any

import aiohttp

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.prometheus import Prometheus, needs_prometheus
from tests.support.samples import small_service
from tests.support.server import Server

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "ossa-registry.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_file_is_the_output_of_the_script() -> None:
    names: dict[str, Any] = {"__name__": "dashboard", "__file__": str(FOLDER / "dashboard.py")}
    exec(compile((FOLDER / "dashboard.py").read_bytes(), names["__file__"], "exec"), names)
    assert (FOLDER / "ossa-registry.json").read_text(encoding="utf-8") == names["text"]()


def test_panels_do_not_overlap_and_have_unique_ids() -> None:
    occupied: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & occupied, panel["title"]
        assert all(x < 24 for x, _ in cells)
        occupied |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_every_expression_selects_the_instance() -> None:
    for expression in EXPRESSIONS:
        selectors = re.findall(r"\b(?:ossa_registry|process)_\w+(\{[^}]*\})?", expression)
        assert all('instance=~"$instance"' in selector for selector in selectors), expression


async def test_metrics_of_the_dashboard_exist(server: Server) -> None:
    existing = set[str]()
    async with aiohttp.ClientSession() as client:
        for _ in range(2):  # the second response counts the first request
            async with client.get(f"{server.http}/metrics") as response:
                existing = set(re.findall(r"^(\w+)", await response.text(), re.MULTILINE)) | {"up"}
    used = {name for each in EXPRESSIONS for name in re.findall(r"\b(?:ossa_registry|process)_\w+|\bup\b", each)}
    assert used - existing == set()


@needs_prometheus
async def test_prometheus_evaluates_every_expression(server: Server, tmp_path: Path) -> None:
    async with Prometheus(tmp_path / "prom", [server.http.removeprefix("http://")]) as prometheus:
        for name in ("a", "b"):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)))
            await prometheus.scraped(2)
        await prometheus.scraped(6)
        empty = []
        for expression in EXPRESSIONS:
            query = expression.replace("$instance", ".*").replace("$__rate_interval", "12s")
            if not await prometheus.query(query):
                empty.append(query)
    # No request failed, and this Redis has no maxmemory.
    assert all('code!="OK"' in each or "memory_max" in each for each in empty), empty

"""The files in ``deploy/prometheus`` pass promtool and use existing metrics."""

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.prometheus import ALERTS, alert_names, needs_prometheus, promtool
from tests.support.server import Server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]


async def text_of_metrics(server: Server) -> bytes:
    async with aiohttp.ClientSession() as client, client.get(f"{server.http}/metrics") as response:
        return await response.read()


@needs_prometheus
async def test_promtool_accepts_the_metrics(server: Server) -> None:
    assert await promtool("check", "metrics", text=await text_of_metrics(server)) == (0, "")


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", str(FOLDER / "alerts.yml")),
        ("check", "config", str(FOLDER / "prometheus.yml")),
        ("test", "rules", str(FOLDER / "alerts_test.yml")),
    ],
    ids=" ".join,
)
async def test_promtool_accepts_the_files(arguments: tuple[str, ...]) -> None:
    code, output = await promtool(*arguments)
    assert code == 0, output


async def test_alerts_use_existing_metrics(server: Server) -> None:
    await text_of_metrics(server)  # a first request, so that request metrics exist
    server.parts.problems.report("test", "so that its metric exists")
    existing = set(re.findall(rb"^(\w+)", await text_of_metrics(server), re.MULTILINE)) | {b"up"}
    used = {name for rule in RULES for name in re.findall(r"\b(?:ossa_registry|process)_\w+|\bup\b", rule["expr"])}
    assert used - {name.decode() for name in existing} == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_runbook(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    runbook = OPERATIONS.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    for part in ("**Means:**", "**Look at:**", "**Do:**"):
        assert part in runbook, part


def test_every_runbook_belongs_to_an_alert() -> None:
    assert re.findall(r"^### (OssaRegistry\w+)$", OPERATIONS, re.MULTILINE) == list(
        alert_names(ALERTS.read_text(encoding="utf-8"))
    )

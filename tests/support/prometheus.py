"""A real Prometheus that scrapes registries, with short intervals."""

import asyncio
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import yaml

TIMEOUT_SECONDS = 60.0
ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
_WINDOW = "12s"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool (Debian package prometheus)",
)


def shorten_windows(rules: str) -> str:
    """Shorten the windows of the rules to 12 s and their ``for`` durations to 1 s."""
    assert re.search(r"\[\d+m\]", rules)
    return re.sub(r"(?m)^( +for:) \S+$", r"\1 1s", re.sub(r"\[\d+m\]", f"[{_WINDOW}]", rules))


class Prometheus:
    """Scrapes targets and evaluates the alerts twice a second.

    Args:
        folder: Directory of its files.
        targets: HOST:PORT of each registry.
    """

    def __init__(self, folder: Path, targets: Iterable[str]) -> None:
        self._folder = folder
        self._targets = list(targets)
        self._process: asyncio.subprocess.Process | None = None
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "alerts.yml").write_text(shorten_windows(ALERTS.read_text(encoding="utf-8")), encoding="utf-8")
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{"job_name": "ossa-registry", "static_configs": [{"targets": self._targets}]}],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        port = _free_port()
        self._process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        )
        self._client = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self._ready():
                assert self._process.returncode is None, "Prometheus exited during its start"
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        assert self._process is not None
        await self._client.close()
        if self._process.returncode is None:
            self._process.kill()  # its data is not needed
        await self._process.wait()

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression and return labels and value of each sample."""
        answer = await self._get("/api/v1/query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in answer["result"]]

    async def firing(self) -> set[str]:
        """Return the names of the firing alerts."""
        answer = await self._get("/api/v1/alerts")
        return {alert["labels"]["alertname"] for alert in answer["alerts"] if alert["state"] == "firing"}

    async def fires(self, *alerts: str) -> None:
        """Wait until each of the alerts has fired."""
        missing = set(alerts)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while missing := missing - await self.firing():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"did not fire in {TIMEOUT_SECONDS} s: {sorted(missing)}") from None

    async def scraped(self, times: int = 2) -> None:
        """Wait until every target has been scraped ``times`` times."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                counts = [value for _, value in await self.query("count_over_time(ossa_registry_revision[1h])")]
                if len(counts) == len(self._targets) and min(counts) >= times:
                    return
                await asyncio.sleep(0.1)

    async def _ready(self) -> bool:
        assert self._client is not None
        try:
            async with self._client.get("/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def _get(self, path: str, **parameters: str) -> Any:
        assert self._client is not None
        async with self._client.get(path, params=parameters) as response:
            answer = await response.json()
            assert answer["status"] == "success", answer
            return answer["data"]


async def promtool(*arguments: str, text: bytes = b"") -> tuple[int, str]:
    """Run promtool and return its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        "promtool",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(text)
    assert process.returncode is not None
    return process.returncode, output.decode()


def alert_names(rules: str) -> Sequence[str]:
    """Return the names of all alerts in a rule file."""
    return [rule["alert"] for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

"""The documented script in a real browser's ``EventSource``."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from tests.rest.client import Rest, client, service
from tests.support.redis_process import RedisProcess
from tests.support.server import running

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
DOCUMENT = Path(__file__).parents[2] / "docs" / "rest.md"

# Reports the state of the page to this test.
REPORT = """
const revisions = [], ends = [];
let snapshots = 0, opened = 0;
events.addEventListener("open", () => { opened++; });
events.addEventListener("registry:snapshot:started", () => { snapshots++; });
events.addEventListener("registry:error", ({ data }) => { if (data) ends.push(JSON.parse(data).error.code); });
for (const name of ["service:registered", "service:updated", "service:health:changed", "service:unregistered"])
  events.addEventListener(name, ({ data }) => { revisions.push(JSON.parse(data).revision); });
setInterval(() => fetch("/report", { method: "POST", body: JSON.stringify({
  services: Object.fromEntries(services), revisions, snapshots, opened, ends, state: events.readyState,
}) }), 50);
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is in PATH")


def documented_script(base: str) -> str:
    found = re.search(r"^```js\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found
    assert "http://localhost:3002" in found[1]
    return found[1].replace("http://localhost:3002", base)


class Page:
    """Serves a page and receives its reports."""

    def __init__(self) -> None:
        self.origin = ""
        self.script = ""
        self.report: dict[str, Any] = {}
        self._news = asyncio.Event()

    async def serve(self, request: web.Request) -> web.Response:
        """Serve the page or receive a report."""
        if request.method == "POST":
            self.report = await request.json()
            self._news.set()
            return web.Response(status=204)
        text = f"<!doctype html><script>{self.script}</script><script>{REPORT}</script>"
        return web.Response(text=text, content_type="text/html")

    async def wait_for_report(self, **expected: Any) -> None:
        """Wait until a report contains these values."""
        try:
            async with asyncio.timeout(60):
                while any(self.report.get(name) != value for name, value in expected.items()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"the page reports {self.report}, not {expected}") from None


@asynccontextmanager
async def page() -> AsyncIterator[Page]:
    result = Page()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", result.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    result.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield result
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browser(url: str, profile: Path) -> AsyncIterator[None]:
    assert BROWSER is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        *flags,
        "--remote-debugging-port=0",  # otherwise the browser may exit once the page is loaded
        f"--user-data-dir={profile}",
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Debian's launcher script is the parent: the whole group is killed
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def make_changes(rest: Rest, number: int) -> None:
    """Make five changes of each kind."""
    for i in range(5):
        await rest.post("/services", service(f"agent-{number}-{i}"))
        await rest.put(f"/services/agent-{number}-{i}", {"version": f"{number}.{i}"})
        await rest.put(f"/services/agent-{number}-{i}", {"health": {"status": "healthy"}})
        await rest.post("/services", service(f"temporary-{number}-{i}"))
        await rest.delete(f"/services/temporary-{number}-{i}")


async def test_event_source_resumes_after_restarts_without_loss(redis: RedisProcess, tmp_path: Path) -> None:
    async with running(redis.url) as other, client(other.http) as rest, page() as shown, AsyncExitStack() as stack:
        http: dict[str, Any] = {"cors_origins": shown.origin}
        await make_changes(rest, 0)
        server_context = running(redis.url, http=http)
        server = await server_context.__aenter__()
        http["address"] = f"127.0.0.1:{URL(server.http).port}"
        shown.script = documented_script(server.http)
        try:
            await stack.enter_async_context(browser(shown.origin, tmp_path / "profile"))
            await shown.wait_for_report(snapshots=1, opened=1)
            start = other.parts.hub.replica.revision
            for restart in (1, 2):
                await make_changes(rest, 2 * restart)
                await server_context.__aexit__(None, None, None)
                await make_changes(rest, 2 * restart + 1)  # while the page's server is down
                server_context = running(redis.url, http=http)
                await server_context.__aenter__()
                await shown.wait_for_report(opened=restart + 1)
            last = other.parts.hub.replica.revision
            services = {each["name"]: each for each in (await rest.get("/services?pageSize=1000")).data["services"]}
            await shown.wait_for_report(
                services=services,
                revisions=list(range(start + 1, last + 1)),
                snapshots=1,
                ends=["SHUTTING_DOWN", "SHUTTING_DOWN"],
            )
        finally:
            await server_context.__aexit__(None, None, None)

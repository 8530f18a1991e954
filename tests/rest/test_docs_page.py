"""``/docs`` shows the OpenAPI description without external resources."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from registry_server.gateway import docs
from tests.rest.client import Rest
from tests.rest.spec import operations
from tests.rest.test_browser import BROWSER, BROWSERS

ASSETS = Path(docs.__file__).parent / "assets"
# Digests of the published files of swagger-ui-dist 5.35.0.
SHA256 = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


async def test_page_loads_only_resources_of_this_server(rest: Rest) -> None:
    page = await rest.get_outside_api("/docs")
    assert page.status == 200
    text = page.raw.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert [url for url in loaded if not url.startswith(("/", "data:"))] == []
    for url in loaded:
        if url.startswith("/"):
            answer = await rest.get_outside_api(url)
            assert (answer.status, len(answer.raw) > 0) == (200, True)
    assert re.search(r"<script(?![^>]* src=)", text) is None, "the content security policy forbids inline scripts"


async def test_content_security_policy_forbids_external_resources(rest: Rest) -> None:
    policy = (await rest.get_outside_api("/docs")).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert re.search(r"https?:", policy) is None


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/docs", "text/html"),
        ("/docs/start.js", "text/javascript"),
        ("/docs/swagger-ui.css", "text/css"),
        ("/docs/swagger-ui-bundle.js", "text/javascript"),
    ],
)
async def test_files_have_their_media_types(path: str, media_type: str, rest: Rest) -> None:
    answer = await rest.get_outside_api(path)
    assert answer.headers["Content-Type"] == f"{media_type}; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/docs/", "/docs/../server.py", "/docs/%2e%2e/server.py", "/docs/swagger-ui.LICENSE"])
async def test_other_files_are_not_served(path: str, rest: Rest) -> None:
    assert (await rest.get_outside_api(path)).status == 404


@pytest.mark.parametrize("name", SHA256)
def test_vendored_files_are_unmodified_and_licensed(name: str) -> None:
    assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == SHA256[name]
    assert "Apache License" in (ASSETS / "swagger-ui.LICENSE").read_text(encoding="utf-8")


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is in PATH")
async def test_browser_shows_every_operation(rest: Rest, tmp_path: Path) -> None:
    assert BROWSER is not None
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"{rest.base}/docs",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    page = (await process.communicate())[0].decode()
    for _, _, operation in operations():
        assert operation.value["summary"] in page

"""The programs in docs/embedding.md run as written."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import aiohttp

from tests.support.markdown import text_of
from tests.support.redis_process import free_port

TIMEOUT = 60.0
PROGRAMS = re.findall(r"```python\n(.*?)```", text_of("docs/embedding.md"), flags=re.DOTALL)
(PRINTED,) = re.findall(r"```text\n(.*?)```", text_of("docs/embedding.md"), flags=re.DOTALL)


async def start(directory: Path, program: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def test_first_program_prints_what_the_page_says(tmp_path: Path) -> None:
    process = await start(tmp_path, PROGRAMS[0])
    async with asyncio.timeout(TIMEOUT):
        out, errors = await process.communicate()
    assert (process.returncode, out.decode()) == (0, PRINTED), errors.decode()


async def test_program_serves_the_api_beside_its_own_health(tmp_path: Path) -> None:
    port = free_port()
    assert "port=8080" in PROGRAMS[1]
    process = await start(tmp_path, PROGRAMS[1].replace("port=8080", f"port={port}"))
    try:
        async with asyncio.timeout(TIMEOUT), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            while True:
                try:
                    async with session.get("/health") as response:
                        assert await response.json() == {"status": "ok"}
                    break
                except aiohttp.ClientConnectionError:
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
            async with session.get("/api/v1/registry/services") as response:
                assert (await response.json())["data"]["services"] == []
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()

"""The example does what it says, in the lines it has."""

import asyncio
import sys
from pathlib import Path

from registry_client.testing import RegistryProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


async def test_an_agent_is_found_called_killed_and_found_no_more(registry: RegistryProcess) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(EXAMPLE), registry.target, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    assert printed.decode().splitlines() == ["found and called: hello", "killed, and found no more"]

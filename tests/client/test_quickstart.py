"""The quickstart example: its output and its size."""

import asyncio
import sys
from pathlib import Path

from registry_client.testing import RegistryProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_quickstart_has_fewer_than_40_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


async def test_agent_is_found_and_called_then_removed_after_its_death(registry: RegistryProcess) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", str(EXAMPLE), registry.target, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    assert printed.decode().splitlines() == ["found and called: hello", "killed and no longer found"]

"""The rolling update of ``examples/fleet``: no call fails and no record is wrong, also while the registry restarts."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.examples.programs import ROOT
from tests.support.console import blocks
from tests.support.previous import previous_source
from tests.support.processes import run_to_end
from tests.support.server import import_from

FLEET = ROOT / "examples" / "fleet"
MAX_SECONDS = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(MAX_SECONDS + 30)]


async def run_example(*arguments: str) -> None:
    """Run the example, and check that it has found nothing wrong."""
    code, output = await run_to_end(sys.executable, *arguments, cwd=FLEET, max_seconds=MAX_SECONDS)
    assert code == 0, output
    *_, calls, result = output.splitlines()
    assert result == "no failed call, no wrong record"
    assert "by 1.0.0" in calls
    assert "by 2.0.0" in calls


async def test_rolling_update_of_a_fleet_with_the_documented_command() -> None:
    documented, *_ = (each for block in blocks((FLEET / "README.md").read_text("utf-8")) for each in block.commands)
    python, *arguments = shlex.split(documented.text)
    assert Path(python).name == "python"
    await run_example(*arguments)


@pytest.mark.interop
async def test_rolling_update_while_the_registry_is_upgraded(tmp_path: Path) -> None:
    # The previous version does not know instances: it is upgraded before the first old process leaves.
    variables = import_from(previous_source(tmp_path))
    previous = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-P"]
    command = shlex.join([*previous, "-m", "registry_server"])
    await run_example("rolling_update.py", "--registry", command, "--restart", "0")

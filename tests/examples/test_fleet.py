"""The rolling update of ``examples/fleet``: no call fails and no record is wrong, also while the registry restarts."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.examples.programs import ROOT
from tests.support.console import blocks
from tests.support.processes import run_to_end

FLEET = ROOT / "examples" / "fleet"
MAX_SECONDS = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(MAX_SECONDS + 30)]


async def test_rolling_update_of_a_fleet_with_the_documented_command() -> None:
    documented, *_ = (each for block in blocks((FLEET / "README.md").read_text("utf-8")) for each in block.commands)
    python, *arguments = shlex.split(documented.text)
    assert Path(python).name == "python"
    code, output = await run_to_end(sys.executable, *arguments, cwd=FLEET, max_seconds=MAX_SECONDS)
    assert code == 0, output
    *_, calls, result = output.splitlines()
    assert result == "no failed call, no wrong record"
    assert "by 1.0.0" in calls
    assert "by 2.0.0" in calls

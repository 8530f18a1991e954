"""Thousands of generated requests, single and in sequences, get only documented answers."""

import asyncio
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest

from tests.rest.spec import operations
from tests.support.server import ServerProcess

CASES = 2_000
EXAMPLES = 80
"""Examples for each operation and phase, about 2,500 cases in total."""
# The event stream does not end; tests/rest/test_events.py validates its answers.
EXCLUDED_PATH = "/api/v1/registry/events"
# Schemathesis does not test the path of the description itself; tests/rest/test_openapi.py does.
DESCRIPTION_PATH = "/openapi.yaml"
# A schema cannot express that text is an RE2 expression, that a token belongs to a filter or that a tag is current. The
# tests of each path check what is accepted.
EXCLUDED_CHECK = "positive_data_acceptance"

OPERATIONS = [(method, path) for method, path, _ in operations() if path not in {EXCLUDED_PATH, DESCRIPTION_PATH}]


@pytest.mark.timeout(600)
async def test_generated_requests_get_only_documented_answers(tmp_path: Path) -> None:
    # CI builds must be reproducible.
    seed = 1 if "CI" in os.environ else random.randrange(1 << 30)
    report_file = tmp_path / "report.json"
    with tempfile.TemporaryDirectory(prefix="ossa-") as directory:
        async with ServerProcess(f"--data-dir={directory}") as server:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).parent / "schemathesis",
                "run",
                f"http://{server.http_address}{DESCRIPTION_PATH}",
                "--checks=all",
                f"--exclude-checks={EXCLUDED_CHECK}",
                f"--exclude-path={EXCLUDED_PATH}",
                f"--max-examples={EXAMPLES}",
                f"--seed={seed}",
                "--continue-on-failure",
                "--suppress-health-check=all",
                "--request-timeout=30",
                f"--report-json-path={report_file}",
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output = (await process.communicate())[0].decode(errors="replace")
            log = list(server.log)
    assert process.returncode == 0, output
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["complete"] is True
    assert report["failures"] == []
    assert report["operations"]["tested"] == len(OPERATIONS)
    assert report["test_cases"]["generated"] >= CASES, output
    assert report["test_cases"]["errored"] == 0
    assert {phase: result["status"] for phase, result in report["phases"].items()} == dict.fromkeys(
        ("examples", "coverage", "fuzzing", "stateful"), "success"
    )
    assert [line for line in log if line.get("level") in {"error", "critical"}] == []

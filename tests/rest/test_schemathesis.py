"""Thousands of generated requests, good and bad, single and in sequences, find nothing that is not documented."""

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
"""For each operation and phase: together some 2,500 cases."""
# Streams without an end; its answers are held against the description by the tests of it.
LEFT_OUT = "/api/v1/registry/events"
# Where it reads the description from it does not test; tests/rest/test_openapi.py does.
READ_FROM = "/openapi.yaml"
# What no schema can say: that an expression is one of RE2, that a token is of this filter, that a tag is the current
# one. That everything else is accepted, and what is refused has a reason, the tests of each path show.
NOT_ASKED = "positive_data_acceptance"

OPERATIONS = [(method, path) for method, path, _ in operations() if path not in {LEFT_OUT, READ_FROM}]


@pytest.mark.timeout(600)
async def test_generated_requests_find_only_what_is_documented(tmp_path: Path) -> None:
    # What a build is told must not depend on the dice of that day.
    seed = 1 if "CI" in os.environ else random.randrange(1 << 30)
    report_file = tmp_path / "report.json"
    with tempfile.TemporaryDirectory(prefix="ossa-") as directory:
        async with ServerProcess(f"--data-dir={directory}") as server:
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).parent / "schemathesis",
                "run",
                f"http://{server.http_address}{READ_FROM}",
                "--checks=all",
                f"--exclude-checks={NOT_ASKED}",
                f"--exclude-path={LEFT_OUT}",
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
    assert {phase: facts["status"] for phase, facts in report["phases"].items()} == dict.fromkeys(
        ("examples", "coverage", "fuzzing", "stateful"), "success"
    )
    assert [line for line in log if line.get("level") in {"error", "critical"}] == []

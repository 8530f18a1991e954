"""Time from the command line until the registry serves: on an empty data directory, and on existing data."""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.processes import registry
from benchmarks.report import Report


async def run(report: Report, _: argparse.Namespace) -> None:
    """Start a registry with an embedded Redis twice."""
    report.title("Start, with an embedded Redis")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        for which in ("first", "second"):
            start = time.perf_counter()
            async with registry(Path(folder)):
                report.at_most(f"{which} start until serving", time.perf_counter() - start, 3, "s")

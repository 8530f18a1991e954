"""From the command line to serving: the first start on an empty data directory, and the second on what it left."""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.processes import registry
from benchmarks.report import Report


async def run(report: Report, _: argparse.Namespace) -> None:
    """Starts a registry with an embedded Redis twice."""
    report.title("Start, with an embedded Redis")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        for which in ("first", "second"):
            start = time.perf_counter()
            async with registry(Path(folder)):
                report.at_most(f"{which} start, to serving", time.perf_counter() - start, 3, "s")

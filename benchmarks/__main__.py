"""Runs the benchmarks and prints one line for each figure."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import structlog

from benchmarks import (
    catalog,
    discover,
    failover,
    fanout,
    probes,
    queries,
    resolve,
    rest,
    rolling,
    start,
    watch,
    workers,
    writes,
)
from benchmarks.report import Report

SCENARIOS = {
    "start": start.run,
    "catalog": catalog.run,
    "discover": discover.run,
    "queries": queries.run,
    "writes": writes.run,
    "rest": rest.run,
    "watch": watch.run,
    "fanout": fanout.run,
    "workers": workers.run,
    "probes": probes.run,
    "resolve": resolve.run,
}
LONG = {"failover": failover.run, "rolling": rolling.run}
"""Those that take minutes run only where they are named."""


def main() -> int:
    """Runs what the command line names; gives 1 if a bound was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, *LONG, []], help="default: all but the long ones")
    parser.add_argument("--services", type=int, default=100_000, help="services in the catalog scenario")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of a comparison")
    parser.add_argument("--minutes", type=float, default=10, help="how long the rolling scenario looks at memory")
    parser.add_argument("--page", type=Path, help="write what was measured to this file, in Markdown")
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = Report()
    asyncio.run(report.machine())
    for name in args.scenario or SCENARIOS:
        asyncio.run({**SCENARIOS, **LONG}[name](report, args))
    if args.page:
        args.page.write_text(report.page(f"python -m benchmarks {' '.join(sys.argv[1:])}"), encoding="utf-8")
    return report.failed


if __name__ == "__main__":
    sys.exit(main())

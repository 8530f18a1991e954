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
    failures,
    fanout,
    large,
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
from benchmarks.about import ABOUT
from benchmarks.report import Report

SCENARIOS = {
    "start": start.run,
    "catalog": catalog.run,
    "large": large.run,
    "discover": discover.run,
    "queries": queries.run,
    "writes": writes.run,
    "rest": rest.run,
    "watch": watch.run,
    "fanout": fanout.run,
    "failures": failures.run,
    "probes": probes.run,
    "workers": workers.run,
    "resolve": resolve.run,
}
LONG = {"failover": failover.run, "rolling": rolling.run}
"""Those that take minutes run only where they are named."""
ALL = {**SCENARIOS, **LONG}


def main() -> int:
    """Runs what the command line names; gives 1 if a bound was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*ALL, []], help="default: all but the long ones")
    parser.add_argument("--services", type=int, default=100_000, help="services in the catalog scenario")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of a comparison")
    parser.add_argument("--minutes", type=float, default=10, help="how long the rolling scenario looks at memory")
    parser.add_argument("--page", type=Path, help="write what was measured into this page, in Markdown")
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = Report(args.rounds)
    asyncio.run(report.machine())
    for name in args.scenario or SCENARIOS:
        report.scenario(name, ABOUT[name])
        asyncio.run(ALL[name](report, args))
        if args.page:  # each time, so that what was measured is kept if the next one fails
            earlier = args.page.read_text(encoding="utf-8") if args.page.exists() else ""
            args.page.write_text(report.page(earlier, list(ALL)), encoding="utf-8")
    return report.failed


if __name__ == "__main__":
    sys.exit(main())

"""Runs the benchmarks and prints one line for each result."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import structlog

from benchmarks import (
    catalog,
    connections,
    discover,
    failover,
    failures,
    fanout,
    heartbeats,
    large,
    probes,
    queries,
    registrations,
    resolve,
    rest,
    rolling,
    search,
    sizing,
    start,
    watch,
    workers,
)
from benchmarks.about import ABOUT
from benchmarks.report import Report
from benchmarks.summary import summary

SCENARIOS = {
    "start": start.run,
    "catalog": catalog.run,
    "large": large.run,
    "discover": discover.run,
    "queries": queries.run,
    "search": search.run,
    "registrations": registrations.run,
    "heartbeats": heartbeats.run,
    "rest": rest.run,
    "connections": connections.run,
    "watch": watch.run,
    "fanout": fanout.run,
    "failures": failures.run,
    "probes": probes.run,
    "workers": workers.run,
    "resolve": resolve.run,
    "sizing": sizing.run,
}
LONG = {"failover": failover.run, "rolling": rolling.run}
"""Scenarios that take minutes; they run only if they are named."""
ALL = {**SCENARIOS, **LONG}
OPENINGS = (summary, lambda _: sizing.guide())
"""Parts of the page before its sections."""


def main() -> int:
    """Run the scenarios named on the command line. Return 1 if a bound was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenario", nargs="*", choices=[*ALL, []], help="default: all except failover and rolling")
    parser.add_argument(
        "--services", type=int, default=100_000, help="number of services in the catalog and search scenarios"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of alternating rounds of a comparison")
    parser.add_argument(
        "--minutes", type=float, default=10, help="duration of the memory measurement in the rolling scenario"
    )
    parser.add_argument(
        "--page", type=Path, help="Markdown page in which to replace the sections of the measured scenarios"
    )
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = Report(args.rounds, OPENINGS)
    asyncio.run(report.machine())
    for name in args.scenario or SCENARIOS:
        report.scenario(name, ABOUT[name])
        asyncio.run(ALL[name](report, args))
        if args.page:  # after each scenario, so that its results are kept if a later one fails
            earlier = args.page.read_text(encoding="utf-8") if args.page.exists() else ""
            args.page.write_text(report.page(earlier, list(ALL)), encoding="utf-8")
    return report.failed


if __name__ == "__main__":
    sys.exit(main())

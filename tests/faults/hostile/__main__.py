"""``python -m tests.faults.hostile`` (part of ``make faults``): honest callers beside hostile ones."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.faults.hostile.attacks import WITH_ROLE, WITHOUT_CREDENTIAL
from tests.faults.hostile.scenario import run

MAX_P99_RATIO = 2.0
MAX_ADDED_MIB = 20.0
_MAX_PRINTED_VIOLATIONS = 20


def main() -> int:
    """Run the scenario, print its numbers, and return 0 if they are within the limits."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="duration of each of the three phases (default 60)")
    parser.add_argument("--attack", action="append", choices=[*WITH_ROLE, *WITHOUT_CREDENTIAL], help="only this attack")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ossa-hostile-") as directory:
        report = asyncio.run(run(options.seconds, Path(directory), options.attack or ()))
    for name, outcomes in report.outcomes.items():
        print(name, outcomes)
    print(*report.violations[:_MAX_PRINTED_VIOLATIONS], sep="\n")
    failed = bool(report.violations) or report.added_mib > MAX_ADDED_MIB
    failed = failed or report.p99_hostile > MAX_P99_RATIO * report.p99_harmless
    print(f"hostile callers: {'FAILED' if failed else 'passed'}; {report}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.faults.suite`` (``make faults``): run faults with seeds and collect the results."""

import argparse
import itertools
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

import orjson

from tests.faults.suite.catalogue import CATALOGUE, mixture, reason_to_skip
from tests.faults.suite.checker import check
from tests.faults.suite.history import History
from tests.faults.suite.report import write_page
from tests.faults.suite.run import Result, run_in_new_loop


def main() -> int:
    """Run the suite. Return 0 if no promise was violated."""
    options = _parser().parse_args()
    if options.check:
        violations = check(History.read(options.check))
        print(*violations, f"{len(violations)} violations", sep="\n")
        return bool(violations)
    done = _read(options.json) if options.json else []
    completed = {(result.fault, result.seed) for result in done}
    runs = ((names, seed) for names, seed in _runs(options) if ("+".join(names), seed) not in completed)
    failed = 0
    for result in _all(runs, options):
        failed += bool(result.violations)
        done.append(result)
        if options.json:
            with options.json.open("ab") as file:
                file.write(orjson.dumps(asdict(result)) + b"\n")
    if options.page:
        write_page(options.page, done)
    print(f"{len(done)} runs, {failed} failed", flush=True)
    return bool(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.suite", description=__doc__)
    parser.add_argument("--fault", action="append", choices=CATALOGUE, help="run only this fault; can be repeated")
    parser.add_argument("--seeds", type=int, default=2, help="number of runs of each fault (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--mix", type=int, default=0, metavar="COUNT", help="number of additional runs of mixed faults")
    parser.add_argument(
        "--soak", type=float, default=0, metavar="MINUTES", help="run mixes with random seeds for this time"
    )
    parser.add_argument("--parallel", type=int, default=2, help="number of concurrent runs (default 2)")
    parser.add_argument(
        "--within", type=float, default=float("inf"), metavar="SECONDS", help="start no run after this time"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append results to this file; runs that it contains are skipped"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table of runs to this page")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="only check a history that a run has written")
    return parser


def _runs(options: argparse.Namespace) -> Iterator[tuple[list[str], int]]:
    if options.soak:
        for seed in itertools.count(random.SystemRandom().randrange(1 << 30)):
            yield mixture(seed), seed
    names = options.fault or [name for name in CATALOGUE if name != "none"]
    for seed in range(options.seed, options.seed + options.seeds):
        for name in names:
            if reason := reason_to_skip(CATALOGUE[name]):
                print(f"{name}: skipped, {reason}", flush=True)
            else:
                yield [name], seed
    for seed in range(options.seed, options.seed + options.mix):
        yield mixture(seed), seed


def _all(runs: Iterator[tuple[list[str], int]], options: argparse.Namespace) -> Iterator[Result]:
    """Make several runs concurrently, each in a separate process."""
    started, max_seconds = time.monotonic(), min(options.within, options.soak * 60 or options.within)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.parallel, mp_context=context) as pool:
        in_flight: set[Future[Result]] = set()
        while True:
            while len(in_flight) < options.parallel and time.monotonic() - started < max_seconds:
                run = next(runs, None)
                if run is None:
                    break
                in_flight.add(pool.submit(run_in_new_loop, *run))
            if not in_flight:
                return
            ended, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)


def _read(path: Path) -> list[Result]:
    return [Result(**orjson.loads(line)) for line in path.read_bytes().splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())

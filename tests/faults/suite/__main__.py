"""``python -m tests.faults.suite`` (``make faults``): runs faults with seeds, and keeps what came of them."""

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

from tests.faults.suite.catalogue import CATALOGUE, mixture, possible
from tests.faults.suite.checker import check
from tests.faults.suite.history import History
from tests.faults.suite.report import write_page
from tests.faults.suite.run import Result, run_apart


def main() -> int:
    """Gives 0 if all promises were kept."""
    options = _parser().parse_args()
    if options.check:
        found = check(History.read(options.check))
        print(*found, f"{len(found)} violations", sep="\n")
        return bool(found)
    done = _read(options.json) if options.json else []
    known = {(result.fault, result.seed) for result in done}
    runs = ((names, seed) for names, seed in _runs(options) if ("+".join(names), seed) not in known)
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
    parser.add_argument("--fault", action="append", choices=CATALOGUE, help="only this one; may be given again")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each fault (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="the first of them (default 1)")
    parser.add_argument("--mix", type=int, default=0, metavar="COUNT", help="also so many runs of a mix of faults")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES", help="mixes with new seeds, for so long")
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS", help="begin no run after this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append results; what is in it is not run again")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table of runs into this page")
    parser.add_argument("--check", type=Path, metavar="HISTORY", help="only judge a history that a run has left")
    return parser


def _runs(options: argparse.Namespace) -> Iterator[tuple[list[str], int]]:
    if options.soak:
        for seed in itertools.count(random.SystemRandom().randrange(1 << 30)):
            yield mixture(seed), seed
    names = options.fault or [name for name in CATALOGUE if name != "none"]
    for seed in range(options.seed, options.seed + options.seeds):
        for name in names:
            if why := possible(CATALOGUE[name]):
                print(f"{name}: skipped, {why}", flush=True)
            else:
                yield [name], seed
    for seed in range(options.seed, options.seed + options.mix):
        yield mixture(seed), seed


def _all(runs: Iterator[tuple[list[str], int]], options: argparse.Namespace) -> Iterator[Result]:
    """Makes several runs at a time, each in a process of its own."""
    begun, within = time.monotonic(), min(options.within, options.soak * 60 or options.within)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.parallel, mp_context=context) as pool:
        under_way: set[Future[Result]] = set()
        while True:
            while len(under_way) < options.parallel and time.monotonic() - begun < within:
                run = next(runs, None)
                if run is None:
                    break
                under_way.add(pool.submit(run_apart, *run))
            if not under_way:
                return
            ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)


def _read(path: Path) -> list[Result]:
    return [Result(**orjson.loads(line)) for line in path.read_bytes().splitlines()] if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())

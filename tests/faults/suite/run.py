"""Runs of the suite: inject one or more faults under load, and check the recorded history."""

import asyncio
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.suite.catalogue import CATALOGUE
from tests.faults.suite.checker import Violation, check
from tests.faults.suite.fault import Fault
from tests.faults.suite.history import WRITES, History, Promises
from tests.faults.suite.load import Load, load
from tests.faults.suite.stage import Stage, staged

_MAX_PRINTED_VIOLATIONS = 10
WRITES_BEFORE_FAULTS, WRITES_AFTER_FAULTS = 50, 30
"""Acknowledged writes before the first fault and after the last one; independent of the speed of the machine."""
FAULT_SECONDS = 0.3, 2.0
"""Range of the duration of a fault in seconds."""


@dataclass
class Result:
    """Result of one run."""

    fault: str
    seed: int
    seconds: float
    calls: int = 0
    acknowledged: int = 0
    """Number of acknowledged writes."""
    unknown: int = 0
    """Number of calls without a response."""
    changes: int = 0
    epochs: int = 0
    violations: list[str] = field(default_factory=list)
    commit: str = ""
    day: str = ""

    @classmethod
    def of(cls, fault: str, seed: int, seconds: float, history: History, violations: Sequence[Violation]) -> "Result":
        """Return the result of a history."""
        return cls(
            fault,
            seed,
            round(seconds, 1),
            len(history.calls),
            sum(call.kind in WRITES and call.outcome == "ok" for call in history.calls),
            sum(call.outcome == "unknown" for call in history.calls),
            len({(message.epoch, event.revision) for message in history.messages for event in message.events}),
            len({message.epoch for message in history.messages}),
            [str(violation) for violation in violations],
            commit_of_the_code(),
            time.strftime("%Y-%m-%d", time.gmtime()),
        )

    def __str__(self) -> str:
        word = "FAILED" if self.violations else "passed"
        return (
            f"{self.fault} seed {self.seed}: {word} in {self.seconds} s; {self.calls} calls, "
            f"{self.acknowledged} acknowledged writes, {self.unknown} calls without a response, "
            f"{self.changes} changes, {self.epochs} epochs"
        )


def commit_of_the_code() -> str:
    """Return the short hash of the current commit, or an empty string outside of a repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout.strip()


def combined_promises(faults: Sequence[Fault]) -> Promises:
    """Return the promises that hold under several faults at once."""
    promises = [fault.promises for fault in faults]
    return Promises(
        may_lose=any(each.may_lose for each in promises),
        may_skip=any(each.may_skip for each in promises),
        reads_succeed=all(each.reads_succeed for each in promises),
        clock_is_correct=all(each.clock_is_correct for each in promises),
    )


async def run_once(
    names: Sequence[str], seed: int, directory: Path, *, module: Sequence[str] = ("registry_server",)
) -> tuple[Result, History]:
    """Make one run, write its history to ``history.jsonl`` and check it.

    Args:
        names: Faults, which are injected one after the other and removed together.
        seed: Seed of the faults and clients. Their interleaving still varies.
        directory: Directory of data, logs and history.
        module: Module to run instead of the registry, and its first arguments.
    """
    faults = [CATALOGUE[name] for name in names]
    history = History(f"{'+'.join(names)} seed {seed}", combined_promises(faults))
    started = time.monotonic()
    needs = {need: value for fault in faults for need, value in fault.needs.items()}
    flags = [flag for fault in faults for flag in fault.flags]
    async with staged(faults[0].deployment, directory, flags=flags, module=module, **needs) as stage:
        async with load(stage, random.Random(seed), history) as subject:
            await subject.more_writes(WRITES_BEFORE_FAULTS)
            await _inject_faults(faults, stage, subject, random.Random(f"faults {seed}"))
            await subject.more_writes(WRITES_AFTER_FAULTS)
            await subject.stop()
            await subject.settle()
        for number, process in enumerate(stage.processes):
            for line in process.log:
                if line.get("level") in ("error", "critical") or "level" not in line:
                    history.problems.append(f"process {number} logged {line}")
    history.write(directory / "history.jsonl")
    return Result.of("+".join(names), seed, time.monotonic() - started, history, check(history)), history


def run_in_new_loop(names: list[str], seed: int) -> Result:
    """Make one run in a new event loop, and keep its directory if there are violations."""
    directory = Path(tempfile.mkdtemp(prefix="ossa-faults-"))
    try:
        result, _ = asyncio.run(run_once(names, seed, directory))
    except Exception as error:  # noqa: BLE001 - a failed run is a result
        result = Result("+".join(names), seed, 0, violations=[f"suite: the run failed: {error!r}"])
    print(result, *result.violations[:_MAX_PRINTED_VIOLATIONS], sep="\n    ", flush=True)
    if result.violations:
        print(f"    {len(result.violations)} violations; see {directory}/history.jsonl", flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return result


async def _inject_faults(faults: Sequence[Fault], stage: Stage, subject: Load, rng: random.Random) -> None:
    """Inject one fault after the other, then remove all of them."""
    async with AsyncExitStack() as stack:
        for fault in faults:
            await stack.enter_async_context(fault.inject(stage, subject, rng))
            await asyncio.sleep(rng.uniform(*FAULT_SECONDS) / len(faults))

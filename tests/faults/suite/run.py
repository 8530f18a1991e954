"""Runs of the suite: a fault, or a mix of them, over a load, and the judgement on what was seen."""

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

_SHOWN = 10
"""Violations of one run that are printed."""
BEFORE, AFTER = 50, 30
"""Writes that are acknowledged before the first fault begins and after the last one is over: on a slow machine too."""
HOLD = 0.3, 2.0
"""Seconds that a fault lasts, about."""


@dataclass
class Result:
    """What came of one run."""

    fault: str
    seed: int
    seconds: float
    calls: int = 0
    acknowledged: int = 0
    """Writes."""
    unknown: int = 0
    """Calls whose outcome their client does not know."""
    changes: int = 0
    epochs: int = 0
    violations: list[str] = field(default_factory=list)
    commit: str = ""
    day: str = ""

    @classmethod
    def of(cls, fault: str, seed: int, seconds: float, history: History, violations: Sequence[Violation]) -> "Result":
        """Counts what is in a history."""
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
            f"{self.acknowledged} writes acknowledged, {self.unknown} calls without an answer, "
            f"{self.changes} changes, {self.epochs} epochs"
        )


def commit_of_the_code() -> str:
    """Short name of the commit that is checked out; empty outside of a repository."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout.strip()


def together(faults: Sequence[Fault]) -> Promises:
    """What still holds under several faults at once."""
    promises = [fault.promises for fault in faults]
    return Promises(
        may_lose=any(each.may_lose for each in promises),
        may_skip=any(each.may_skip for each in promises),
        reads_go_on=all(each.reads_go_on for each in promises),
        clock_is_true=all(each.clock_is_true for each in promises),
    )


async def run_once(
    names: Sequence[str], seed: int, directory: Path, *, module: Sequence[str] = ("registry_server",)
) -> tuple[Result, History]:
    """Makes one run, writes its history to ``history.jsonl`` and judges it.

    Args:
        names: Faults, which begin one after the other and are all over at the end.
        seed: Of the faults and of each client, though not of how they interleave.
        directory: Where everything goes.
        module: Run in place of the registry.
    """
    faults = [CATALOGUE[name] for name in names]
    history = History(f"{'+'.join(names)} seed {seed}", together(faults))
    begun = time.monotonic()
    needs = {need: value for fault in faults for need, value in fault.needs.items()}
    flags = [flag for fault in faults for flag in fault.flags]
    async with staged(faults[0].deployment, directory, flags=flags, module=module, **needs) as stage:
        async with load(stage, random.Random(seed), history) as subject:
            await subject.more_writes(BEFORE)
            await _go_wrong(faults, stage, subject, random.Random(f"faults {seed}"))
            await subject.more_writes(AFTER)
            await subject.stop()
            await subject.settle()
        for number, process in enumerate(stage.processes):
            for line in process.log:
                if line.get("level") in ("error", "critical") or "level" not in line:
                    history.complaints.append(f"process {number} logged {line}")
    history.write(directory / "history.jsonl")
    return Result.of("+".join(names), seed, time.monotonic() - begun, history, check(history)), history


def run_apart(names: list[str], seed: int) -> Result:
    """Makes one run in an event loop of its own; what it leaves is kept if something was wrong."""
    directory = Path(tempfile.mkdtemp(prefix="ossa-faults-"))
    try:
        result, _ = asyncio.run(run_once(names, seed, directory))
    except Exception as error:  # noqa: BLE001 - a run that breaks is a result too
        result = Result("+".join(names), seed, 0, violations=[f"suite: the run broke: {error!r}"])
    print(result, *result.violations[:_SHOWN], sep="\n    ", flush=True)
    if result.violations:
        print(f"    {len(result.violations)} violations; see {directory}/history.jsonl", flush=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return result


async def _go_wrong(faults: Sequence[Fault], stage: Stage, subject: Load, chance: random.Random) -> None:
    """Begins one fault after the other; all of them are ended in the end."""
    async with AsyncExitStack() as stack:
        for fault in faults:
            await stack.enter_async_context(fault.over(stage, subject, chance))
            await asyncio.sleep(chance.uniform(*HOLD) / len(faults))

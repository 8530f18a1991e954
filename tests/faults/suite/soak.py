"""``python -m tests.faults.suite.soak``: an hour of mixed load with churn, restarts and failovers, and its record."""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Final

from benchmarks.rolling import resident_mib, running_fleet, stop_fleet
from tests.faults.suite.churn import Churn
from tests.faults.suite.report import environment, replace_section
from tests.faults.suite.run import commit_of_the_code
from tests.faults.suite.stage import Deployment, Stage, staged
from tests.support.deployments import role_of, wait_until_linked

MARKERS: Final = "<!-- soak: begin -->", "<!-- soak: end -->"
_FLAGS: Final = {"alone": (), "cluster": (), "sentinel": ("--redis.wait-replicas=1", "--redis.timeout-ms=1000")}
_WIDTH: Final = 120
_ACTION_TIME: Final = 0.3
"""Time of the action in a period, as a share of the period: memory is compared at the ends of periods."""
_SETTLE_SECONDS: Final = 60.0
_STALLS: Final = re.compile(r"^ossa_registry_event_loop_stall_seconds_(count|sum)\S* (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """Duration and load of a soak."""

    seconds: float
    deployment: Deployment = "sentinel"
    actions: tuple[str, ...] = (
        "nothing",
        "primary killed",
        "registry 1 restarted",
        "primary paused",
        "nothing",
        "registry 2 killed",
    )
    """Actions of the periods, repeated."""
    period_seconds: float = 300.0
    services: int = 2_000
    """Agents with leases of 30 s."""
    streams: int = 10
    """``KeepAlive`` streams that renew these leases."""
    watchers: int = 200
    churning: int = 50
    """Agents that register, live for some seconds, and leave or vanish."""


@dataclass
class Period:
    """Measurements at the end of a period."""

    minute: float
    action: str
    processes: list[float]
    """Resident memory of each registry process in MiB."""
    redis: float
    """Resident memory of the primary in MiB."""
    stalls: int
    """Delays of an event loop of more than 0.25 s."""
    stalled_seconds: float
    calls: int
    unavailable: int


@dataclass
class Record:
    """The record of a soak."""

    plan: Plan
    periods: list[Period]
    failures: dict[str, int]
    """Violations by kind; all are 0 if every promise was kept."""
    facts: dict[str, str]

    @property
    def failed(self) -> bool:
        """Return whether a promise was violated."""
        return any(self.failures.values())

    def markdown(self) -> str:
        """Return the record for the page."""
        plan = self.plan
        when = f"{time.strftime('%Y-%m-%d', time.gmtime())}, at {commit_of_the_code()}; {environment()}"
        load = (
            f"{plan.services:,} agents with leases of 30 s, {plan.churning} that come and go with leases of 5 s, "
            f"{plan.watchers} watchers"
        )
        lines = [
            fill(f"{plan.seconds / 60:.3g} minutes, {when}. Redis: {plan.deployment}; {load}.", _WIDTH),
            "",
            "| Minute | Action | Process 1, 2 (MiB) | Redis (MiB) | Stalls > 0.25 s | Calls | `UNAVAILABLE`, retried |",
            "|---:|---|---:|---:|---:|---:|---:|",
        ]
        for each in self.periods:
            sizes = ", ".join(f"{size:.0f}" for size in each.processes)
            stalls = f"{each.stalls} ({each.stalled_seconds:.1f} s)" if each.stalls else "0"
            cells = (f"{each.minute:.3g}", each.action, sizes, f"{each.redis:.0f}", stalls)
            lines.append(f"| {' | '.join(cells)} | {each.calls:,} | {each.unavailable:,} |")
        lines += ["", "| | |", "|---|---:|"]
        lines += [f"| {name} | {value} |" for name, value in self.facts.items()]
        lines += [f"| {name} | {count:,}{' **VIOLATION**' * bool(count)} |" for name, count in self.failures.items()]
        return "\n".join(lines)


async def soak(plan: Plan, directory: Path, rng: random.Random) -> Record:
    """Run the load for the planned time, with one action in each period."""
    async with staged(plan.deployment, directory, flags=_FLAGS[plan.deployment]) as stage:
        target = "ipv4:" + ",".join(stage.address(process) for process in range(len(stage.processes)))
        async with (
            running_fleet(target, plan.services, plan.streams, plan.watchers) as fleet,
            Churn(target, plan.churning, plan.services, rng) as churn,
        ):
            started, periods = time.monotonic(), list[Period]()
            while (now := time.monotonic() - started) < plan.seconds:
                action = plan.actions[len(periods) % len(plan.actions)]
                length = min(plan.period_seconds, plan.seconds - now)
                periods.append(await _period(stage, churn, action, length))
                periods[-1].minute = (time.monotonic() - started) / 60
                print(periods[-1], flush=True)
            await churn.settle(_SETTLE_SECONDS)
            counters = await stop_fleet(fleet)
        errors = sum(
            line.get("level") in ("error", "critical") or "level" not in line
            for process in stage.processes
            for line in process.log
        )
    failures = {
        "leases lost": counters["lost"] + churn.lost,
        "leases that ended too early": churn.early,
        "abandoned leases that did not end": len(churn.abandoned),
        "changes that a watcher missed or received twice": counters["missed_or_repeated"],
        "calls that failed with another code than `UNAVAILABLE`": sum(churn.errors.values()),
        "errors in the logs since the last restart of each process": errors,
    }
    facts = {
        "leases renewed": f"{counters['renewed'] + churn.renewed:,}",
        "registrations of agents that come and go": f"{churn.registered:,}",
        "leases that ended after their agent vanished": f"{churn.expired:,}",
        "latest end of such a lease after its time": f"{churn.latest:.1f} s",
        "changes received by watchers": f"{counters['events']:,}",
        "watchers that resumed from their cursor": f"{counters['resumed']:,}",
    }
    if churn.errors:
        facts["other codes"] = ", ".join(f"{code} {count}" for code, count in churn.errors.items())
    return Record(plan, periods, failures, facts)


async def _period(stage: Stage, churn: Churn, action: str, length: float) -> Period:
    calls, unavailable = churn.calls, churn.unavailable
    stalls = [-value for value in await _stalls(stage)]
    await asyncio.sleep(length * _ACTION_TIME)
    # The counters of a process end with it.
    before = await _stalls(stage)
    await _act(stage, action)
    if action.startswith("registry"):
        stalls = [total + value for total, value in zip(stalls, before, strict=True)]
    await asyncio.sleep(length * (1 - _ACTION_TIME))
    stalls = [total + value for total, value in zip(stalls, await _stalls(stage), strict=True)]
    return Period(
        0.0,
        action,
        [resident_mib(process.pid) for process in stage.processes],
        resident_mib((await stage.primary()).pid),
        round(stalls[0]),
        stalls[1],
        churn.calls - calls,
        churn.unavailable - unavailable,
    )


async def _act(stage: Stage, action: str) -> None:
    subject, _, verb = action.rpartition(" ")
    if subject.startswith("registry"):
        process = stage.processes[int(subject.split()[1]) - 1]
        await (process.kill() if verb == "killed" else process.stop())
        await process.start()
    elif subject == "primary":
        assert stage.sentinel is not None
        primary = await stage.primary()
        (primary.kill if verb == "killed" else primary.pause)()
        try:
            await stage.sentinel.primary(other_than=primary)
        finally:
            if verb == "killed":
                await primary.restart()
            else:
                primary.resume()
        while await role_of(primary) != "slave":
            await asyncio.sleep(0.05)
        await wait_until_linked(primary)


async def _stalls(stage: Stage) -> list[float]:
    """Return the number of stalls of all processes since they started, and their total duration in seconds."""

    def scrape(address: str) -> dict[str, float]:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return {name: float(value) for name, value in _STALLS.findall(answer.read().decode())}

    found = [await asyncio.to_thread(scrape, process.http_address) for process in stage.processes]
    return [sum(each.get(name, 0.0) for each in found) for name in ("count", "sum")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak, and write its record to a page. Return 1 if a promise was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.suite.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="duration (default 60)")
    parser.add_argument("--period", type=float, default=300, metavar="SECONDS", help="time between two actions")
    parser.add_argument("--services", type=int, default=Plan.services, help="agents with leases of 30 s")
    parser.add_argument("--seed", type=int, default=1, help="seed of the agents that come and go")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the record to this page")
    options = parser.parse_args(arguments)
    plan = Plan(options.minutes * 60, period_seconds=options.period, services=options.services)
    with tempfile.TemporaryDirectory(prefix="ossa-soak-") as directory:
        record = asyncio.run(soak(plan, Path(directory), random.Random(options.seed)))
    print(record.markdown())
    if options.page:
        replace_section(options.page, MARKERS, record.markdown())
    return int(record.failed)


if __name__ == "__main__":
    sys.exit(main())

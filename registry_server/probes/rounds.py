"""``Rounds``: probes each of many services once an interval."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from registry_server.probes.outcome import Outcome, OutcomeKind
from registry_server.probes.pause_detector import PauseDetector
from registry_server.probes.plan import Plan
from registry_server.probes.schedule import Schedule

_TICK: Final = 0.01
"""Seconds by which probes may be late to begin together: woken up for one by one they would cost more."""
_IN_ONE_TURN: Final = 4
"""Probes that begin between two turns of those under way: their response times are to be those of the services."""
_SLACK: Final = 0.5
"""Seconds by which a probe may be longer than its timeout, until it is this process that is late."""
_PAUSE: Final = 0.5
"""Seconds of a pause from which on what became due meanwhile is not caught up with at once."""


class Probes(Protocol):
    """What makes probes, such as ``Prober``."""

    async def probe(self, plan: Plan) -> Outcome:
        """Probes a service once, within the timeout of its plan; raises nothing but ``CancelledError``."""


class Rounds:
    """Probes every service that it was given at its interval, with bounded concurrency.

    One heap says who is due; there is a task for each probe that is under way and none for those that wait. What this
    process was too late for, or stood still in, is ``INCONCLUSIVE``.
    """

    def __init__(
        self, prober: Probes, *, concurrency: int, on_result: Callable[[int, Outcome, float, float], None]
    ) -> None:
        """Prepares it.

        Args:
            prober: Makes the probes.
            concurrency: Most probes under way at once.
            on_result: Told the number of the service, the outcome, when the probe began (monotonic seconds), and how
                many seconds after it was due that was.
        """
        self._prober = prober
        self._on_result = on_result
        self._slots = asyncio.Semaphore(concurrency)
        self._schedule = Schedule()
        self._plans: dict[int, Plan] = {}
        self._pauses = PauseDetector(self._spread)
        self._wake = asyncio.Event()
        self._waits_until = math.inf
        self._going = asyncio.Event()
        self._going.set()
        self._paused_at = 0.0

    def assign(self, number: int, plan: Plan, due: float) -> None:
        """Takes on a service under a number that no other has or had.

        Args:
            number: What results are told by.
            plan: How it is probed.
            due: When its first probe is due, in monotonic seconds.
        """
        self._plans[number] = plan
        self._set(number, due)

    def drop(self, number: int) -> None:
        """Lets a service go, if it was taken on; a probe that is under way is told of all the same."""
        if self._plans.pop(number, None) is not None:
            self._schedule.discard(number)

    def pause(self) -> None:
        """Begins no more probes: nobody takes the results."""
        self._going.clear()
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Goes on after a pause."""
        self._going.set()
        gap = time.monotonic() - self._paused_at
        if gap > _PAUSE:
            self._spread(gap)

    async def run(self) -> None:
        """Probes, until cancelled."""
        self._pauses.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pauses.run(), name="standstill")
            begun = 0
            while True:
                await self._slots.acquire()
                number, plan, due = await self._next()
                begun += 1
                if begun % _IN_ONE_TURN == 0:
                    await asyncio.sleep(0)
                group.create_task(self._check(number, plan, due))

    async def probe(self, plan: Plan) -> Outcome:
        """Probes a service once, beside the rounds."""
        stood_still = self._pauses.look()
        began = time.monotonic()
        outcome = await self._prober.probe(plan)
        ours = self._pauses.look() != stood_still or time.monotonic() - began > plan.timeout + _SLACK
        if ours and outcome.kind is not OutcomeKind.OK:
            return outcome._replace(kind=OutcomeKind.INCONCLUSIVE)  # the time that passed was not the service's
        return outcome

    async def _next(self) -> tuple[int, Plan, float]:
        """Waits for a service that is due; gives it with its plan and the time at which it was due."""
        while True:
            await self._going.wait()
            self._pauses.look()  # what became due meanwhile is not to be caught up with at once
            now = time.monotonic()
            if (entry := self._schedule.pop_due(now)) is not None:
                number, due = entry
                return number, self._plans[number], due
            following = self._schedule.next_due()
            self._waits_until = math.inf if following is None else following
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if following is None else max(following - now, _TICK)):
                    await self._wake.wait()

    async def _check(self, number: int, plan: Plan, due: float) -> None:
        """Makes one probe that is due and sets the time of the next."""
        stood_still = self._pauses.count
        began = time.monotonic()
        try:
            outcome = await self.probe(plan)
        finally:
            self._slots.release()
        if number in self._plans:
            now = time.monotonic()
            # Who was probed so late keeps its new time: else the next probe would follow at once.
            again = max((due if began - due < plan.interval / 2 else began) + plan.interval, now)
            if self._pauses.count != stood_still:  # all that were under way would come at once
                again = now + jitter(plan.interval)
            self._set(number, again)
        self._on_result(number, outcome, began, began - due)

    def _set(self, number: int, due: float) -> None:
        self._schedule.set(number, due)
        if due < self._waits_until - _TICK:
            self._wake.set()

    def _spread(self, gap: float) -> None:
        """Spreads what became due in a gap of so many seconds: all is checked within an interval, but not at once."""
        now = time.monotonic()
        overdue: list[int] = []
        while (entry := self._schedule.pop_due(now)) is not None:
            overdue.append(entry[0])
        for number in overdue:
            self._set(number, now + jitter(min(gap, self._plans[number].interval)))


def jitter(within: float) -> float:
    """A random time up to so many seconds."""
    return random.uniform(0, within)  # noqa: S311 - spreads load, hides nothing

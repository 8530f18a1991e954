"""``Rounds``: probes many services periodically."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from registry_server.probes.outcome import Outcome, OutcomeKind
from registry_server.probes.pause_detector import PauseDetector
from registry_server.probes.plan import Plan
from registry_server.probes.schedule import Schedule

_TICK_SECONDS: Final = 0.01
"""Resolution of the schedule: one wake-up for several probes is cheaper than one for each."""
_PROBES_PER_SLICE: Final = 4
"""Probes started without yielding to the event loop, so that their start does not inflate measured response times."""
_TIMEOUT_SLACK_SECONDS: Final = 0.5
"""If a probe exceeds its timeout by more than this, this process delayed it."""
_SPREAD_AFTER_SECONDS: Final = 0.5
"""After a pause of this length, overdue probes are spread over time instead of being sent at once."""


SendProbe = Callable[[Plan], Coroutine[Any, Any, Outcome]]
"""Probes a service once within the timeout of its plan, like ``Prober.send_probe``."""


class Rounds:
    """Probes every assigned service at its interval, with bounded concurrency.

    One heap holds the due times; there is a task for each probe in flight and none for waiting services. Probes that
    this process delayed, or during which it was paused, are ``INCONCLUSIVE`` unless they succeeded.
    """

    def __init__(
        self, send_probe: SendProbe, *, concurrency: int, on_result: Callable[[int, Outcome, float, float], None]
    ) -> None:
        """Create an empty schedule.

        Args:
            send_probe: Sends a probe; raises nothing but ``CancelledError``.
            concurrency: Maximum number of concurrent due probes.
            on_result: Called with the number of the service, the outcome, the start of the probe (monotonic seconds)
                and the seconds between its due time and its start.
        """
        self._send_probe = send_probe
        self._on_result = on_result
        self._slots = asyncio.Semaphore(concurrency)
        self._schedule = Schedule()
        self._plans: dict[int, Plan] = {}
        self._pauses = PauseDetector(self._spread)
        self._wake = asyncio.Event()
        self._waiting_until = math.inf
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._paused_at = 0.0

    def assign_service(self, number: int, plan: Plan, due: float) -> None:
        """Probe a service periodically, first at ``due`` in monotonic seconds, under a number that was never used."""
        self._plans[number] = plan
        self._schedule_probe(number, due)

    def drop_service(self, number: int) -> None:
        """Stop probing a service; a probe in flight still reports its result."""
        if self._plans.pop(number, None) is not None:
            self._schedule.remove(number)

    def pause(self) -> None:
        """Start no more probes, because results are not being read."""
        self._unpaused.clear()
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Resume after a pause."""
        self._unpaused.set()
        gap = time.monotonic() - self._paused_at
        if gap > _SPREAD_AFTER_SECONDS:
            self._spread(gap)

    async def run(self) -> None:
        """Probe services until cancelled."""
        self._pauses.reset()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pauses.run(), name="pause-detector")
            for started_probes in itertools.count(1):
                await self._slots.acquire()
                number, plan, due = await self._next_due()
                if started_probes % _PROBES_PER_SLICE == 0:
                    await asyncio.sleep(0)
                group.create_task(self._probe_due(number, plan, due))

    async def probe_now(self, plan: Plan) -> Outcome:
        """Probe a service once, independently of the schedule."""
        pauses = self._pauses.check()
        started = time.monotonic()
        outcome = await self._send_probe(plan)
        delayed = self._pauses.check() != pauses or time.monotonic() - started > plan.timeout + _TIMEOUT_SLACK_SECONDS
        if delayed and outcome.kind is not OutcomeKind.OK:
            return outcome._replace(kind=OutcomeKind.INCONCLUSIVE)  # this process caused the delay
        return outcome

    async def _next_due(self) -> tuple[int, Plan, float]:
        """Wait for a due service; return its number, plan and due time."""
        while True:
            await self._unpaused.wait()
            self._pauses.check()  # after a pause, overdue probes are spread
            now = time.monotonic()
            if (entry := self._schedule.pop_due(now)) is not None:
                number, due = entry
                return number, self._plans[number], due
            following = self._schedule.next_due()
            self._waiting_until = math.inf if following is None else following
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if following is None else max(following - now, _TICK_SECONDS)):
                    await self._wake.wait()

    async def _probe_due(self, number: int, plan: Plan, due: float) -> None:
        """Send a due probe and schedule the next one."""
        pauses = self._pauses.count
        started = time.monotonic()
        try:
            outcome = await self.probe_now(plan)
        finally:
            self._slots.release()
        if number in self._plans:
            now = time.monotonic()
            # After a large delay the rhythm restarts: otherwise the next probe would follow immediately.
            again = max((due if started - due < plan.interval / 2 else started) + plan.interval, now)
            if self._pauses.count != pauses:  # otherwise all probes in flight during it would be repeated at once
                again = now + jitter(plan.interval)
            self._schedule_probe(number, again)
        self._on_result(number, outcome, started, started - due)

    def _schedule_probe(self, number: int, due: float) -> None:
        self._schedule.set_due(number, due)
        if due < self._waiting_until - _TICK_SECONDS:
            self._wake.set()

    def _spread(self, gap: float) -> None:
        """Spread probes that became due during a gap: all are sent within an interval, but not at once."""
        now = time.monotonic()
        overdue: list[int] = []
        while (entry := self._schedule.pop_due(now)) is not None:
            overdue.append(entry[0])
        for number in overdue:
            self._schedule_probe(number, now + jitter(min(gap, self._plans[number].interval)))


def jitter(max_seconds: float) -> float:
    """Return a random time between 0 and ``max_seconds``."""
    return random.uniform(0, max_seconds)  # noqa: S311 - jitter, not a secret

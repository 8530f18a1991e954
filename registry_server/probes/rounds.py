"""``Rounds``: probes many services periodically."""

import asyncio
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from registry_server.probes.outcome import NO_FREE_SLOT, Outcome, OutcomeKind
from registry_server.probes.pause_detector import PauseDetector
from registry_server.probes.plan import Plan
from registry_server.probes.schedule import Schedule
from registry_server.runtime.fair_slots import FairSlots

_TICK_SECONDS: Final = 0.01
"""Resolution of the schedule: one wake-up for several probes is cheaper than one for each."""
_STARTS_PER_TURN: Final = 8
"""Probes started in one turn of the event loop, so that their start does not inflate measured response times. The
owners share them: thousands of services of one owner that answer fast would otherwise delay those of others."""
_DUE_PER_TURN: Final = 100
"""Due services that are queued without yielding to the event loop: about 1 ms."""
_TIMEOUT_SLACK_SECONDS: Final = 0.5
"""If a probe exceeds its timeout by more than this, this process delayed it."""
_WAKEUPS_PER_PROBE: Final = 4
"""How often a probe waits for the event loop: when it is connected, and for parts of the answer."""
_SPREAD_AFTER_SECONDS: Final = 0.5
"""After a pause of this length, overdue probes are spread over time instead of being sent at once."""
_SKIP_AFTER_SECONDS: Final = 0.5
"""How long a due probe waits for a slot before it is reported as skipped: no lease is shorter than 5 s."""
_MAX_SKIPS_PER_SECOND: Final = 500
"""Reported skips of one owner: more would keep the registry from other results."""


SendProbe = Callable[[Plan], Coroutine[Any, Any, Outcome]]
"""Probes a service once within the timeout of its plan, like ``Prober.send_probe``."""


class _Waiting(NamedTuple):
    """A due service whose probe has not started."""

    queue: FairSlots
    """What it waits for; it holds a slot while it waits for a turn."""
    ticket: int
    due: float


class Rounds:
    """Probes every assigned service at its interval, with bounded concurrency that the owners share fairly.

    One heap holds the due times; there is a task for each probe in flight and none for waiting services. Probes that
    this process delayed, or during which it was paused, are ``INCONCLUSIVE`` unless they succeeded. So is the result of
    a service that is due but waits for a slot, once an interval: it renews the lease.
    """

    def __init__(
        self, send_probe: SendProbe, *, concurrency: int, on_result: Callable[[int, Outcome, float, float], None]
    ) -> None:
        """Create an empty schedule.

        Args:
            send_probe: Sends a probe; raises nothing but ``CancelledError``.
            concurrency: Maximum number of concurrent due probes; ``FairSlots`` divides them among the owners.
            on_result: Called with the number of the service, the outcome, the start of the probe (monotonic seconds)
                and the seconds between its due time and its start.
        """
        self._send_probe = send_probe
        self._on_result = on_result
        self._slots = FairSlots(concurrency, max_waiting=sys.maxsize)  # at most one for each service
        self._schedule = Schedule()
        self._plans: dict[int, Plan] = {}
        self._turns = FairSlots(_STARTS_PER_TURN, max_waiting=sys.maxsize)
        self._waiting: dict[int, _Waiting] = {}  # due services without a slot or a turn to start
        self._in_flight: dict[int, asyncio.Task[None]] = {}
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
        """Stop probing a service; cancel a probe in flight."""
        plan = self._plans.pop(number, None)
        if plan is None:
            return
        self._schedule.remove(number)
        if number in self._waiting:
            queue, ticket, _ = self._waiting.pop(number)
            queue.withdraw(plan.owner, ticket)
            if queue is self._turns:
                self._slots.release(plan.owner)
        if number in self._in_flight:
            self._in_flight[number].cancel()

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
            try:
                for handled in itertools.count(1):
                    number, due = await self._next_due()
                    if handled % _DUE_PER_TURN == 0:
                        await asyncio.sleep(0)
                    if number in self._plans:
                        self._handle_due(group, number, due)
            finally:
                for number in list(self._waiting):  # none may start while the group ends
                    self.drop_service(number)

    async def probe_now(self, plan: Plan) -> Outcome:
        """Probe a service once, independently of the schedule."""
        pauses = self._pauses.check()
        started = time.monotonic()
        outcome = await self._send_probe(plan)
        delayed = self._pauses.check() != pauses or time.monotonic() - started > plan.timeout + _TIMEOUT_SLACK_SECONDS
        limit = plan.degraded_after if outcome.kind is OutcomeKind.DEGRADED else plan.timeout
        if limit is not None and limit <= outcome.response_time:
            delayed = delayed or _WAKEUPS_PER_PROBE * self._pauses.lag > limit / 2
        if delayed and outcome.kind is not OutcomeKind.OK:
            return outcome._replace(kind=OutcomeKind.INCONCLUSIVE)  # this process caused the delay
        return outcome

    async def _next_due(self) -> tuple[int, float]:
        """Wait for a due service; return its number and due time."""
        while True:
            await self._unpaused.wait()
            self._pauses.check()  # after a pause, overdue probes are spread
            now = time.monotonic()
            if (entry := self._schedule.pop_due(now)) is not None:
                return entry
            following = self._schedule.next_due()
            self._waiting_until = math.inf if following is None else following
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if following is None else max(following - now, _TICK_SECONDS)):
                    await self._wake.wait()

    def _handle_due(self, group: asyncio.TaskGroup, number: int, due: float) -> None:
        """Probe a due service once its owner has a free slot; report it as skipped until then."""
        plan = self._plans[number]
        now = time.monotonic()
        pause = _SKIP_AFTER_SECONDS
        if number in self._waiting:
            pause = plan.interval
            due = self._waiting[number].due
            self._on_result(number, Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NO_FREE_SLOT), now, now - due)
        else:
            start = partial(self._start_probe, group, number, plan, due)
            self._wait_for(
                self._slots, number, plan, due, partial(self._wait_for, self._turns, number, plan, due, start)
            )
            if number not in self._waiting:
                return
        self._schedule_probe(number, now + max(pause, self._slots.waiting(plan.owner) / _MAX_SKIPS_PER_SECOND))

    def _wait_for(self, slots: FairSlots, number: int, plan: Plan, due: float, then: Callable[[], None]) -> None:
        self._waiting.pop(number, None)
        if ticket := slots.request(plan.owner, then):
            self._waiting[number] = _Waiting(slots, ticket, due)

    def _start_probe(self, group: asyncio.TaskGroup, number: int, plan: Plan, due: float) -> None:
        self._waiting.pop(number, None)
        self._schedule.remove(number)
        probe = self._in_flight[number] = group.create_task(self._probe_due(number, plan, due))
        probe.add_done_callback(partial(self._end_probe, number, plan.owner))
        asyncio.get_running_loop().call_soon(self._turns.release, plan.owner)  # after the first step of the task

    def _end_probe(self, number: int, owner: str, probe: asyncio.Task[None]) -> None:
        if self._in_flight[number] is probe:  # the next one may have started
            del self._in_flight[number]
        self._slots.release(owner)

    async def _probe_due(self, number: int, plan: Plan, due: float) -> None:
        """Send a due probe and schedule the next one."""
        await self._unpaused.wait()
        pauses = self._pauses.count
        started = time.monotonic()
        outcome = await self.probe_now(plan)
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

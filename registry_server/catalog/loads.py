"""``Loads``: how busy services are, as their agents report with heartbeats."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

import orjson

from ossa.registry.v1.service_pb2 import Load
from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.errors import StoreUnavailable
from registry_server.model.normal import ttl_seconds
from registry_server.model.record import Record
from registry_server.runtime.clock import Clock, timestamp
from registry_server.store import RedisStore

MAX_AGE_SECONDS: Final = 60.0
"""A load is forgotten after this time, or after the lease of the service if that is shorter."""
_EXCHANGE_SECONDS: Final = 0.4
"""Interval at which processes exchange loads: each knows a load within a second."""
_KEPT_MS: Final = 30_000
"""How long Redis keeps loads, for a process that starts: longer than most agents wait between two heartbeats."""
_FORGET_SECONDS: Final = 10.0
"""Interval at which old loads are removed: one pass over 100,000 takes 5 ms."""
_LOADS_PER_ENTRY: Final = 1_000
"""Reading them takes 2 ms."""
_ENTRIES_PER_EXCHANGE: Final = 5
"""The rest is sent later. A process thus sends at most 12,500 loads a second, of which Redis keeps 25 MB."""


class Loads:
    """The newest loads, which all processes share through Redis within a second.

    Loads are soft state: they have no revision and no event, and after a loss they return with the next heartbeats.
    A load belongs to the instance that reported it; a takeover or a removal forgets it.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        default_ttl: float,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty table.

        Args:
            replica: The services.
            default_ttl: Lease duration in seconds of services that do not set one.
            clock: Wall clock, for ``reported_at``.
            monotonic: Monotonic time in seconds, for the age of loads.
        """
        self._replica = replica
        self._default_ttl = default_ttl
        self._clock = clock
        self._monotonic = monotonic
        self._loads: dict[str, tuple[str, int, int, float]] = {}
        """Name to instance, calls in flight, capacity and time of the report."""
        self._unsent: dict[str, None] = {}
        self._id = secrets.token_hex(8)
        self._read_ms, self._read_id = 0, "0"
        replica.on_applied.append(self._forget_changed)

    def add_reports(self, reports: Iterable[tuple[str, str, int, int]]) -> None:
        """Record loads that arrive now.

        Args:
            reports: Name of each service, the instance that reports (empty = the registered one), calls in flight and
                capacity.
        """
        now, loads, records = self._monotonic(), self._loads, self._replica.records
        for name, instance_id, in_flight, capacity in reports:
            record = records.get(name)
            if record is not None and instance_id in ("", record.instance_id):
                loads[name] = (record.instance_id, in_flight, capacity, now)
                self._unsent[name] = None

    def find(self, record: Record) -> Load | None:
        """Return the newest load that the instance of a service has reported, unless it is too old."""
        found = self._loads.get(record.name)
        if found is None or found[0] != record.instance_id:
            return None
        age, lease_seconds = self._monotonic() - found[3], ttl_seconds(record.message(), self._default_ttl)
        if age > min(lease_seconds or MAX_AGE_SECONDS, MAX_AGE_SECONDS):
            return None
        reported_at = timestamp(self._clock() - round(age * 1e9))
        return Load(in_flight=found[1], capacity=found[2], reported_at=reported_at)

    def share(self, record: Record) -> float:
        """Return the share of its capacity that a service uses; 0 = it has reported no load within a minute.

        Of services whose capacity is unknown the share is between that of an idle and that of a busy one.
        """
        found = self._loads.get(record.name)
        if found is None or found[0] != record.instance_id or self._monotonic() - found[3] > MAX_AGE_SECONDS:
            return 0.0
        return found[1] / (found[2] or found[1] + 1)

    async def run(self, store: RedisStore) -> None:
        """Exchange loads with the other processes until cancelled."""
        forget_at = self._monotonic() + _FORGET_SECONDS
        while True:
            await asyncio.sleep(_EXCHANGE_SECONDS)
            if self._monotonic() >= forget_at:
                self._forget_old()
                forget_at += _FORGET_SECONDS
            try:
                await self.exchange(store)
            except StoreUnavailable:
                continue  # the loads of this process are still known to it, and are sent later

    async def exchange(self, store: RedisStore) -> None:
        """Send the loads that this process has received, and read those of the others.

        Raises:
            StoreUnavailable: Redis did not answer; the loads are sent again by the next call.
        """
        for _ in range(_ENTRIES_PER_EXCHANGE):
            names = list(islice(self._unsent, _LOADS_PER_ENTRY))
            for name in names:
                del self._unsent[name]
            sent = [(name, *load[:3]) for name in names if (load := self._loads.get(name))]
            try:
                now_ms, entries = await store.writer.exchange_loads(
                    self._read_id, self._id, orjson.dumps(sent) if sent else b"", _KEPT_MS, _ENTRIES_PER_EXCHANGE
                )
            except StoreUnavailable:
                self._unsent.update(dict.fromkeys(names))
                raise
            if now_ms < self._read_ms:  # another Redis, whose clock is behind, has become the primary
                self._read_ms, self._read_id = now_ms, str(now_ms)
            for entry in entries:
                self._read_entry(now_ms, *entry)
                await asyncio.sleep(0)
            if not self._unsent and len(entries) < _ENTRIES_PER_EXCHANGE:
                return

    def _read_entry(self, now_ms: int, entry_id: bytes, fields: list[bytes]) -> None:
        self._read_id = entry_id.decode()
        self._read_ms = int(self._read_id.partition("-")[0])
        if not fields:  # an entry of this process
            return
        at = self._monotonic() - max(0, now_ms - self._read_ms) / 1000
        try:
            reports = [_checked(*each) for each in orjson.loads(fields[1])]
        except (ValueError, TypeError):  # another program wrote it
            return
        for name, instance_id, in_flight, capacity in reports:
            known = self._loads.get(name)
            if known is None or known[3] <= at:
                self._loads[name] = (instance_id, in_flight, capacity, at)

    def _forget_changed(self, change: Change) -> None:
        """Forget the load of a service that was removed or taken over by another instance."""
        known = self._loads.get(change.name) if self._loads else None
        if known is not None and (change.after is None or change.after.instance_id != known[0]):
            del self._loads[change.name]

    def _forget_old(self) -> None:
        """Forget loads of services that send none any more."""
        oldest = self._monotonic() - MAX_AGE_SECONDS
        old = [name for name, load in self._loads.items() if load[3] < oldest]
        for name in old:
            del self._loads[name]


def _checked(name: Any, instance_id: Any, in_flight: Any, capacity: Any) -> tuple[str, str, int, int]:
    """Return a load that was read from Redis.

    Raises:
        TypeError: A value has another type.
        ValueError: A number is no valid one.
    """
    if not (type(name) is type(instance_id) is str and type(in_flight) is type(capacity) is int):
        raise TypeError
    if not (0 <= in_flight < 1 << 31 and 0 <= capacity < 1 << 31):
        raise ValueError
    return name, instance_id, in_flight, capacity

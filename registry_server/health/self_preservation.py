"""``SelfPreservation``: suspends status changes when too many probes fail at once."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

_MIN_OWNERS: Final = 3
"""From this number of owners on, half of them are evidence about all services."""
_MIN_FAILURES_OF_OWNERS: Final = 3
"""Failing services that this needs in total: two services of two owners may fail at once by coincidence."""


class Transition(NamedTuple):
    """The start or end of self-preservation."""

    owner: str | None
    """Owner whose statuses are concerned; ``None`` = those of all owners."""
    started: bool
    failing: int = 0
    """Number of failing services of the owner, or of all."""
    counted: int = 0
    """Number of services of the owner, or of all, whose status was up."""
    only: bool = False
    """Whether no other owner has services that are counted."""
    repeated: bool = False
    """Whether it started for the same owner within the time limit before, beside other owners."""


@dataclass(slots=True)
class _Fleet:
    """The services of one owner that are counted."""

    counted: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    starts: bool = False
    """Whether the share of failing services is large enough to start self-preservation."""
    continues: bool = False
    """Whether the share of failing services is large enough to continue it."""


class SelfPreservation:
    """Decides whether this process's probes may change statuses.

    Only services of this process whose status is up (HEALTHY or DEGRADED) are counted. If a large share of an owner's
    services fails at once, their statuses are frozen: a fault of the network in between is more likely than a failure
    of all these services. If that holds for half of at least three owners, or if all services of two owners fail, the
    statuses of all owners are frozen: a fault of this process's network is likely. One owner cannot cause that for
    others. Services without an owner count as one owner's.

    It ends when the share has halved, or after a time limit. Services that still fail at the time limit are excluded
    from the count until a probe succeeds, so that the registry eventually reports a real mass failure.
    """

    def __init__(self, *, share: float, min_failures: int, max_seconds: float) -> None:
        """Create an inactive instance.

        Args:
            share: Share of failing services at which it starts, 0 to 1.
            min_failures: Minimum number of failing services for it to start: of one owner, or of two that fail
                completely.
            max_seconds: Time after which it ends in any case.
        """
        self._share = share
        self._min_failures = min_failures
        self._max_seconds = max_seconds
        self._fleets: dict[str, _Fleet] = {}  # by owner; none is empty
        self._owners: dict[str, str] = {}  # of the tracked services
        self._excluded: set[str] = set()
        self._changed: set[str] = set()  # owners whose fleet changed since the last update
        self._starting = 0  # number of fleets with ``starts``
        self._continuing = 0
        self._since: dict[str | None, float] = {}  # start by owner, in order; None = all owners
        self._started: dict[str, float] = {}  # last start by owner, in order; for the time limit

    @property
    def active(self) -> bool:
        """Whether the status changes of all counted services are suspended."""
        return bool(self._since) and (None in self._since or self._fleets.keys() <= self._since.keys())

    @property
    def protected_owners(self) -> int:
        """Number of owners whose status changes are suspended because of their own services."""
        return len(self._since) - (None in self._since)

    @property
    def failing(self) -> int:
        """Number of counted services whose newest probe failed."""
        return sum(len(fleet.failing) for fleet in self._fleets.values())

    @property
    def counted(self) -> int:
        """Number of services whose status is up."""
        return sum(len(fleet.counted) for fleet in self._fleets.values())

    def protects(self, owner: str) -> bool:
        """Return whether the status changes of an owner's services are suspended."""
        return bool(self._since) and (None in self._since or owner in self._since)

    def track_service(self, name: str, *, up: bool, owner: str | None = None) -> None:
        """Count a service if its status is up, even before its first result.

        Args:
            name: Name of the service.
            up: Whether its status is up.
            owner: Its owner; ``None`` = as before.
        """
        before = self._owners.get(name, "")
        if owner is None:
            owner = before
        elif owner != before:
            self._discard(name, before)
        self._owners[name] = owner
        if not up or name in self._excluded:
            self._discard(name, owner)
        elif (fleet := self._fleets.get(owner)) is None or name not in fleet.counted:
            self._fleets.setdefault(owner, _Fleet()).counted.add(name)
            self._changed.add(owner)

    def add_result(self, name: str, *, failed: bool, up: bool) -> None:
        """Add the newest result of a tracked service; ``up`` is its status before the result."""
        if not failed:
            self._excluded.discard(name)
        self.track_service(name, up=up)
        owner = self._owners[name]
        fleet = self._fleets.get(owner)
        if fleet is not None and name in fleet.counted and failed is not (name in fleet.failing):
            fleet.failing ^= {name}
            self._changed.add(owner)

    def forget_service(self, name: str) -> None:
        """Stop counting a service that is no longer assigned to this process."""
        self._discard(name, self._owners.pop(name, ""))
        self._excluded.discard(name)

    def update(self, now: float) -> list[Transition]:
        """Start or end self-preservation if necessary; return what changed.

        Args:
            now: Monotonic time in seconds.
        """
        transitions = []
        while self._since and now - next(iter(self._since.values())) >= self._max_seconds:
            transitions.append(self._end_at_limit(next(iter(self._since))))
        for owner in self._changed:
            self._count_fleet(owner)
        owners = len(self._fleets)
        needed = max(owners, 2) if owners < _MIN_OWNERS else (owners + 1) // 2
        if None not in self._since:
            if self._starting >= needed and self._is_mass_failure(owners):
                transitions.append(self._start(None, now))
        elif 2 * self._continuing <= needed:
            transitions.append(self._end(None))
            self._changed.update(self._fleets)
        transitions += [
            transition for owner in self._changed if (transition := self._update_owner(owner, now)) is not None
        ]
        self._changed.clear()
        return transitions

    def _is_mass_failure(self, owners: int) -> bool:
        """Return whether enough services fail, given that enough owners do."""
        if owners >= _MIN_OWNERS:
            return self.failing >= min(self._min_failures, _MIN_FAILURES_OF_OWNERS)
        # One of two owners could make a failure of the other look like a mass failure, unless that is complete.
        return self.failing >= self._min_failures and self.failing == self.counted

    def _update_owner(self, owner: str, now: float) -> Transition | None:
        fleet = self._fleets.get(owner)
        if owner in self._since:
            return None if fleet is not None and fleet.continues else self._end(owner)
        if fleet is None or not fleet.starts or None in self._since:
            return None
        return self._start(owner, now) if len(fleet.failing) >= self._min_failures else None

    def _start(self, owner: str | None, now: float) -> Transition:
        self._since[owner] = now
        if owner is None:
            return Transition(None, started=True, failing=self.failing, counted=self.counted)
        while self._started and now - next(iter(self._started.values())) >= self._max_seconds:
            del self._started[next(iter(self._started))]
        only = len(self._fleets) == 1
        repeated = owner in self._started and not only
        self._started.setdefault(owner, now)
        fleet = self._fleets[owner]
        failing, counted = len(fleet.failing), len(fleet.counted)
        return Transition(owner, started=True, failing=failing, counted=counted, only=only, repeated=repeated)

    def _end(self, owner: str | None) -> Transition:
        del self._since[owner]
        return Transition(owner, started=False)

    def _end_at_limit(self, owner: str | None) -> Transition:
        """End self-preservation; exclude the services that still fail."""
        for each in list(self._fleets) if owner is None else [owner]:
            for name in list(self._fleets[each].failing) if each in self._fleets else ():
                self._excluded.add(name)
                self._discard(name, each)
        return self._end(owner)

    def _discard(self, name: str, owner: str) -> None:
        """Stop counting a service."""
        fleet = self._fleets.get(owner)
        if fleet is None or name not in fleet.counted:
            return
        fleet.counted.discard(name)
        fleet.failing.discard(name)
        if not fleet.counted:
            self._count_fleet(owner)
            del self._fleets[owner]
        self._changed.add(owner)

    def _count_fleet(self, owner: str) -> None:
        """Update the number of fleets that fail."""
        fleet = self._fleets.get(owner)
        if fleet is None:
            return
        share = len(fleet.failing) / len(fleet.counted) if fleet.counted else 0.0
        starts, continues = share >= self._share, share > self._share / 2
        self._starting += starts - fleet.starts
        self._continuing += continues - fleet.continues
        fleet.starts, fleet.continues = starts, continues

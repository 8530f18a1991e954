"""``SelfPreservation``: suspends status changes when too many probes fail at once."""


class SelfPreservation:
    """Decides whether this process's probes may change statuses.

    Only services of this process whose status is up (HEALTHY or DEGRADED) are counted. If a large share of them fails
    at once, a fault of this process's network is more likely than a failure of all these services. Self-preservation
    ends when the share has halved, or after a time limit. Services that still fail at the time limit are excluded from
    the count until a probe succeeds, so that the registry eventually reports a real mass failure.
    """

    def __init__(self, *, share: float, min_failures: int, max_seconds: float) -> None:
        """Create an inactive instance.

        Args:
            share: Share of failing services at which it starts, 0 to 1.
            min_failures: Minimum number of failing services for it to start.
            max_seconds: Time after which it ends in any case.
        """
        self._share = share
        self._min_failures = min_failures
        self._max_seconds = max_seconds
        self._counted: set[str] = set()
        self._failing: set[str] = set()
        self._excluded: set[str] = set()
        self._since: float | None = None

    @property
    def active(self) -> bool:
        """Whether status changes are suspended."""
        return self._since is not None

    @property
    def failing(self) -> int:
        """Number of counted services whose newest probe failed."""
        return len(self._failing)

    @property
    def counted(self) -> int:
        """Number of services whose status is up."""
        return len(self._counted)

    def track_service(self, name: str, *, up: bool) -> None:
        """Count a service if its status is up, even before its first result."""
        if up and name not in self._excluded:
            self._counted.add(name)
        else:
            self._counted.discard(name)
            self._failing.discard(name)

    def add_result(self, name: str, *, failed: bool, up: bool) -> None:
        """Add the newest result of a service; ``up`` is its status before the result."""
        if not failed:
            self._excluded.discard(name)
            self._failing.discard(name)
        self.track_service(name, up=up)
        if failed and name in self._counted:
            self._failing.add(name)

    def forget_service(self, name: str) -> None:
        """Stop counting a service that is no longer assigned to this process."""
        self.track_service(name, up=False)
        self._excluded.discard(name)

    def update(self, now: float) -> bool | None:
        """Start or end self-preservation if necessary.

        Args:
            now: Monotonic time in seconds.

        Returns:
            True if it started, False if it ended, None if nothing changed.
        """
        share = len(self._failing) / len(self._counted) if self._counted else 0.0
        if self._since is None:
            if len(self._failing) >= self._min_failures and share >= self._share:
                self._since = now
                return True
            return None
        if now - self._since >= self._max_seconds:
            self._excluded |= self._failing
            self._counted -= self._failing
            self._failing.clear()
        elif share > self._share / 2:
            return None
        self._since = None
        return False

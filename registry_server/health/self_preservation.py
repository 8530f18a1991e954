"""``SelfPreservation``: a process that sees too many services fail at once doubts itself first."""


class SelfPreservation:
    """Decides whether this process's probes may change statuses.

    Counted are the services of this process that are believed to be up: the others prove nothing about it. If a large
    share of them fail, more likely the network of this process is at fault than all of them at once. It ends when the
    share has halved, or after a while: then those that still fail are excused, that is they no longer count until they
    succeed again, and a true mass failure shows.
    """

    def __init__(self, *, share: float, minimum: int, longest: float) -> None:
        """Prepares it.

        Args:
            share: Share of failing services at which it begins, 0 to 1.
            minimum: It never begins with fewer failing services.
            longest: Seconds after which it ends in any case.
        """
        self._share = share
        self._minimum = minimum
        self._longest = longest
        self._counted: set[str] = set()
        self._failing: set[str] = set()
        self._excused: set[str] = set()
        self._since: float | None = None

    @property
    def active(self) -> bool:
        """Whether statuses are frozen."""
        return self._since is not None

    @property
    def failing(self) -> int:
        """How many services fail that are believed to be up."""
        return len(self._failing)

    @property
    def counted(self) -> int:
        """How many services are believed to be up."""
        return len(self._counted)

    def expect(self, name: str, *, up: bool) -> None:
        """Counts a service that is believed to be up, also before its first result, and no other."""
        if up and name not in self._excused:
            self._counted.add(name)
        else:
            self._counted.discard(name)
            self._failing.discard(name)

    def take(self, name: str, *, failed: bool, up: bool) -> None:
        """Takes the newest result of a service, and whether it was believed to be up before it."""
        if not failed:
            self._excused.discard(name)
            self._failing.discard(name)
        self.expect(name, up=up)
        if failed and name in self._counted:
            self._failing.add(name)

    def forget(self, name: str) -> None:
        """Forgets a service that is no longer this process's."""
        self.expect(name, up=False)
        self._excused.discard(name)

    def judge(self, now: float) -> bool | None:
        """Looks whether it begins (True), ends (False), or stays as it is (None).

        Args:
            now: Monotonic seconds.
        """
        share = len(self._failing) / len(self._counted) if self._counted else 0.0
        if self._since is None:
            if len(self._failing) >= self._minimum and share >= self._share:
                self._since = now
                return True
            return None
        if now - self._since >= self._longest:
            self._excused |= self._failing
            self._counted -= self._failing
            self._failing.clear()
        elif share > self._share / 2:
            return None
        self._since = None
        return False

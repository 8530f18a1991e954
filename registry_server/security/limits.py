"""Limits: concurrent streams, and calls in flight with their bytes."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple, TypeAlias

from registry_server.errors import LimitExceeded, Overloaded

SMALL_REQUEST_BYTES: Final = 16 << 10
"""Requests up to this size do not count towards the byte limit: large requests must not block small ones."""
UNRESERVED_PART: Final = 0.8
"""Part of a total that any caller may use; the rest is reserved for callers that hold less than an equal share."""


class Shares:
    """A total that callers share, such as places or bytes."""

    __slots__ = ("_by_caller", "_unreserved", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Maximum of all callers together."""
        self.held = 0
        """What all callers hold at present."""
        self._unreserved = int(limit * UNRESERVED_PART)
        self._by_caller: dict[Hashable, int] = {}

    @property
    def scarce(self) -> bool:
        """Whether only the reserved part is left."""
        return self.held >= self._unreserved

    def held_by(self, caller: Hashable) -> int:
        """Return what a caller holds."""
        return self._by_caller.get(caller, 0)

    def take(self, caller: Hashable, amount: int) -> bool:
        """Take a part of the total for a caller; return False if it may not.

        In the reserved part, a caller that holds something must stay within an equal share of the total, of which one
        is left for the next caller.
        """
        mine, total = self._by_caller.get(caller, 0), self.held + amount
        if total > self._unreserved and (
            total > self.limit or (mine and (mine + amount) * (len(self._by_caller) + 1) > self.limit)
        ):
            return False
        self.held = total
        self._by_caller[caller] = mine + amount
        return True

    def hold(self, caller: Hashable, amount: int) -> None:
        """Count a part of the total for a caller, whatever the limit is."""
        self.held += amount
        self._by_caller[caller] = self._by_caller.get(caller, 0) + amount

    def give_back(self, caller: Hashable, amount: int) -> None:
        """Stop counting a part of the total for a caller."""
        self.held -= amount
        mine = self._by_caller[caller] - amount
        if mine:
            self._by_caller[caller] = mine
        else:
            del self._by_caller[caller]


class Gauge:
    """Counts what callers hold concurrently, such as streams, for each caller and in total."""

    def __init__(self, name: str, limit: int, *, setting: str = "", setting_per_caller: str = "") -> None:
        """Set the total limit.

        Args:
            name: Name of the limit in errors, such as ``watches``.
            limit: Maximum for all callers together.
            setting: Name of the setting with ``limit``, for the error.
            setting_per_caller: Name of the setting with the limit for one caller, for the error.
        """
        self._name = name
        self._shares = Shares(limit)
        self._total_note = f" ({setting})" if setting else ""
        self._caller_note = f" ({setting_per_caller})" if setting_per_caller else ""

    @property
    def total(self) -> int:
        """Current number for all callers."""
        return self._shares.held

    @contextmanager
    def count(self, caller: Hashable, limit: int | None = None) -> Iterator[None]:
        """Count one more while the context is active.

        Args:
            caller: Who holds it.
            limit: Maximum for the caller; ``None`` = no limit but its share of a scarce total.

        Raises:
            LimitExceeded: The caller has reached ``limit``, or all callers together have reached the total limit.
        """
        if limit is not None and self._shares.held_by(caller) >= limit:
            message = f"limit of {limit} {self._name} per caller reached{self._caller_note}"
            raise LimitExceeded(self._name, limit, message)
        if not self._shares.take(caller, 1):
            total = self._shares.limit
            message = f"limit of {total} {self._name} in this process reached{self._total_note}"
            raise LimitExceeded(self._name, total, message)
        try:
            yield
        finally:
            self._shares.give_back(caller, 1)


class InFlight:
    """Counts the calls in flight of many callers and the bytes they hold.

    Calls beyond what the process can answer before clients time out would only cost memory.
    """

    def __init__(self, max_calls: int, max_bytes: int, setting: str = "limits.calls") -> None:
        self.calls, self.bytes = Shares(max_calls), Shares(max_bytes)
        """Calls in flight; and bytes of large requests, and of large answers until they are read."""
        self.setting = setting
        """Name of the setting with ``max_calls``, for errors."""
        self.rejected = 0
        """Number of calls rejected by these limits."""

    def overloaded(self) -> Overloaded:
        """Return the error for a call that exceeds the limit on calls, and count it."""
        self.rejected += 1
        limit = self.calls.limit
        return Overloaded("calls", limit, f"limit of {limit} calls in flight reached ({self.setting})")

    def too_many_bytes(self, note: str = "") -> Overloaded:
        """Return the error for a call that exceeds the limit on bytes, and count it.

        Args:
            note: Why a small request may exceed it.
        """
        self.rejected += 1
        limit = self.bytes.limit
        reason = f"limit of {limit} bytes of requests and answers reached (limits.call_bytes){note}"
        return Overloaded("call-bytes", limit, reason)


class CallSlot:
    """One call in flight, with the bytes that it holds."""

    __slots__ = ("_bytes", "_caller", "_in_flight")

    def __init__(self, in_flight: InFlight, caller: Hashable, size: int = 0) -> None:
        """Count a call with a request of ``size`` bytes until ``release``.

        Raises:
            Overloaded: A limit is reached; nothing is counted.
        """
        self._in_flight, self._caller, self._bytes = in_flight, caller, 0
        if not in_flight.calls.take(caller, 1):
            raise in_flight.overloaded()
        if size > SMALL_REQUEST_BYTES:
            try:
                self.hold_bytes(size)
            except Overloaded:
                self.release()
                raise

    def hold_bytes(self, size: int) -> None:
        """Count more bytes. A single call may exceed the limit if no other bytes are held.

        Raises:
            Overloaded: The limit is reached.
        """
        if not size:
            return
        held = self._in_flight.bytes
        if not held.held:
            held.hold(self._caller, size)
        elif not held.take(self._caller, size):
            raise self._in_flight.too_many_bytes()
        self._bytes += size

    def release(self) -> None:
        """Stop counting the call and its bytes."""
        self._in_flight.calls.give_back(self._caller, 1)
        if self._bytes:
            self._in_flight.bytes.give_back(self._caller, self._bytes)


Streams: TypeAlias = Literal["watches", "keep-alive-streams", "health-watches", "reflection-streams"]
"""Kind of stream; the limit on open streams applies to each kind separately."""


class Places(NamedTuple):
    """Places for the calls and streams of one class of callers."""

    in_flight: InFlight
    streams: Mapping[Streams, Gauge]

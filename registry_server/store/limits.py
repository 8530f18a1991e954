"""``StoreLimits``: batch sizes, page sizes and waiting times of the store."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """How much one command reads or writes, and how long the store waits; the defaults are those of the registry."""

    commands_batch: int = 256
    """Commands of one round trip; bounds how long it keeps Redis busy."""
    max_waiting_commands: int = 20_000
    """Bounds memory when clients write faster than Redis commits."""
    commit_gather_seconds: float = 0.01
    """How long a busy process collects changes before it sends them."""
    page: int = 1000
    """Records or events read by one command."""
    tail_page: int = 250
    """Events read at once while following; the follower applies them without a pause, in about 10 ms."""
    tail_block_seconds: float = 0.5
    """Duration of a blocking read of the stream; after each, an idle follower verifies that history continues."""
    renew_batch: int = 1000
    """Leases renewed by one script."""
    checks_batch: int = 500
    """Probe results written by one script."""
    sweep_batch: int = 500
    """Expired services removed by one script."""
    repair_gather_seconds: float = 1.5
    """How long processes with newer data may ask for the turn to repair; longer than a follower takes to notice."""
    repair_turn_seconds: float = 4.0
    """A process whose repair has not progressed for this long loses its turn."""
    repair_batch: int = 250
    """Services or events restored by one script; it keeps Redis busy for some milliseconds."""
    repair_page: int = 500
    """Records or events read by one command during a repair."""


DEFAULT_LIMITS: Final = StoreLimits()

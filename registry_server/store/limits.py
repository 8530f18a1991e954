"""``StoreLimits``: batch sizes, page sizes and waiting times of the store."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """Size of one command or script, and waiting times. Only tests change the defaults."""

    commands_batch: int = 256
    """Commands per round trip. Limits it to a few milliseconds, during which Redis serves no other client."""
    commit_gather_seconds: float = 0.008
    """How long at most a busy process collects commits before it sends them as one group."""
    page: int = 1000
    """Records or events per read of a full scan."""
    tail_page: int = 250
    """Events per read of the stream; the follower takes about 10 ms to apply them, in slices."""
    tail_block_seconds: float = 0.5
    """Duration of a blocking read of the stream; after each, an idle follower verifies that history continues."""
    renew_batch: int = 1000
    """Leases renewed by one call of ``renew.lua``."""
    renew_gather_seconds: float = 0.005
    """How long the heartbeats of agents that send one every few seconds wait for others."""
    checks_batch: int = 500
    """Probe results written by one call of ``checks.lua``."""
    sweep_batch: int = 500
    """Services removed, and missing documents reported, by one call of ``sweep.lua``."""
    repair_gather_seconds: float = 1.5
    """How long processes with newer data may request the turn to repair; longer than a follower needs to notice."""
    repair_turn_seconds: float = 4.0
    """A process whose repair writes nothing for this long loses its turn."""
    repair_batch: int = 250
    """Services or events restored by one script, which keeps Redis busy for a few milliseconds."""


DEFAULT_LIMITS: Final = StoreLimits()

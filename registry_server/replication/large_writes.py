"""``LargeWrites``: bounds the work of writes in one turn of the event loop."""

import asyncio
from typing import Final

from registry_server.catalog import Replica
from registry_server.runtime.pacing import Wakeups
from registry_server.security.identity import current_caller_key

_LARGE_BYTES: Final = 8 << 10
"""Size of services from which one is prepared in a turn: this size takes up to 3 ms, the largest 40 ms (measured with a
schema of empty lists). Without it, 64 services of one owner that fail at once would stop the event loop for seconds."""


class LargeWrites:
    """Lets one large service be prepared in each turn: parsed, copied and encoded. Callers take turns.

    A write waits before it parses the service, and again before it encodes it, because one answer of the store in
    between may resume many writes in the same turn.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._wakeups = Wakeups(per_turn=1)

    async def wait_for_turn(self, name: str) -> None:
        """Wait for a turn in which no other large service is prepared, if the registered service is large."""
        record = self._replica.records.get(name)
        if record is not None and len(record.framed) > _LARGE_BYTES:
            turn = asyncio.get_running_loop().create_future()
            self._wakeups.wake(turn, current_caller_key())
            await turn

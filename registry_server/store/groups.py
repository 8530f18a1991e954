"""Group commit: changes that wait for their round trip are made by one call of ``commit.lua``, each on its own."""

import asyncio
from contextvars import Context
from typing import Any, Final, NamedTuple

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import wait_until_idle
from registry_server.store.commands import Commands
from registry_server.store.limits import DEFAULT_LIMITS, StoreLimits
from registry_server.store.values import Unconfirmed

LARGEST_GROUP: Final = 128
"""Bounds how long one call keeps Redis busy: some milliseconds."""


class _Wanted(NamedTuple):
    document: str
    args: tuple[Any, ...]
    answer: asyncio.Future[Any]


class CommitGroups:
    """Sends the changes of many tasks in groups, in the order in which they were given.

    A round trip costs this process more than the change does. So while it has other work at hand, more changes are
    likely to come of it, and what is there waits for them; an idle process sends at once.
    """

    def __init__(
        self, commands: Commands, keys: tuple[str, ...], events_max_length: int, *, limits: StoreLimits = DEFAULT_LIMITS
    ) -> None:
        """Prepares the sender.

        Args:
            commands: Where to.
            keys: Those that every script takes.
            events_max_length: How many events the stream keeps at the least.
            limits: How many changes may wait, and how long a busy process collects them.
        """
        self._commands = commands
        self._keys = keys
        self._events_max_length = events_max_length
        self._max_waiting = limits.max_waiting_commands
        self._gather = limits.commit_gather_seconds
        self._waiting: list[_Wanted] = []
        self._sender: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many changes wait for their round trip."""
        return len(self._waiting)

    async def commit(self, document: str, *args: Any) -> Any:
        """Makes one change.

        Args:
            document: Key of the service's document.
            args: What ``commit.lua`` takes for each change.

        Returns:
            What it gives for each.

        Raises:
            StoreUnavailable: Redis did not answer; the change may or may not have been made.
        """
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailable("too many writes are waiting for the store")
        self._commands.refuse_if_stalled()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(document, args, answer))
        if self._sender is None:
            # In no caller's context: what it sends is of many.
            self._sender = asyncio.create_task(self._send_all(), name="store-commits", context=Context())
        with self._commands.traced("commit"):
            return await answer

    async def close(self) -> None:
        """Waits for what was given so far."""
        if self._sender is not None:
            await self._sender

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < LARGEST_GROUP:
                    await wait_until_idle(self._gather)
                group, self._waiting = self._waiting[:LARGEST_GROUP], self._waiting[LARGEST_GROUP:]
                await self._send(group)
        finally:
            self._sender = None

    async def _send(self, group: list[_Wanted]) -> None:
        try:
            answer = await self._commands.script(
                "commit",
                (*self._keys, *(wanted.document for wanted in group)),
                self._events_max_length,
                *(value for wanted in group for value in wanted.args),
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach those who wait: nobody else would tell them
            if isinstance(error, StoreUnavailable):
                # Those behind would each wait for the same timeout, one group after the other.
                group, self._waiting = group + self._waiting, []
            for wanted in group:
                if not wanted.answer.done():
                    wanted.answer.set_exception(error)
            return
        answers = (
            [Unconfirmed(one, answer.replicas) for one in answer.answer] if isinstance(answer, Unconfirmed) else answer
        )
        for wanted, one in zip(group, answers, strict=True):
            if not wanted.answer.done():  # else its caller was cancelled
                wanted.answer.set_result(one)

"""Group commit: one call of ``commit.lua`` makes the changes of many tasks, each of them independently."""

import asyncio
from contextvars import Context
from typing import Any, Final, Literal, NamedTuple

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import wait_until_idle
from registry_server.store.commands import Commands
from registry_server.store.limits import StoreLimits
from registry_server.store.values import Unconfirmed

# Limits one call of the script to a few milliseconds, during which Redis serves no other client.
MAX_COMMITS_PER_GROUP: Final = 128


class Commit(NamedTuple):
    """One change of one service: the arguments that ``commit.lua`` takes for it, in this order."""

    epoch: str
    """Epoch of the state that the caller has seen."""
    name: str
    """Name of the service."""
    expected_revision: int
    """Revision that the service must be at; 0 = it must not exist."""
    operation: Literal["put", "touch", "delete"]
    event_type: int
    """``EventType`` of the event; ``touch`` publishes none."""
    event_reason: int
    """``EventReason`` of the event."""
    record: bytes
    """Serialised ``Service`` without its revision; only for ``put``."""
    document: bytes
    """The service's JSON document up to the value of its last field, the revision; empty for ``delete``."""
    ttl_ms: int
    """Length of the lease; 0 = permanent."""
    renew_lease: int
    """1 = start a new lease, 0 = keep the lease unless its length changes."""
    forget_check: int
    """1 = delete the newest probe result."""
    owner: str
    """Identity that becomes the owner of a new service, or an empty string."""
    exclusive: int
    """1 = refuse a change of a service with another owner, and become the owner of a service without one."""
    max_services: int
    """Number of services that the owner may have; 0 = no limit."""
    applied_revision: int
    """Newest revision that the caller has applied."""


class _PendingCommit(NamedTuple):
    commit: Commit
    answer: asyncio.Future[Any]


class CommitGroups:
    """Sends commits in groups, in the order in which they were submitted.

    A round trip costs this process more than the commit itself. While the event loop is busy, further commits are
    likely to follow, so a group waits for them; an idle process sends at once.
    """

    def __init__(
        self,
        commands: Commands,
        script_keys: tuple[str, ...],
        document_prefix: str,
        events_max_length: int,
        *,
        limits: StoreLimits,
    ) -> None:
        """Create an empty queue.

        Args:
            commands: Pipeline to send the groups to.
            script_keys: Keys that every script takes.
            document_prefix: Key of a service's document, without the service's name.
            events_max_length: Number of events that the stream keeps at least.
            limits: Number of waiting commits, and how long a busy process collects them.
        """
        self._commands = commands
        self._script_keys = script_keys
        self._document_prefix = document_prefix
        self._events_max_length = events_max_length
        self._max_waiting = limits.max_waiting_commands
        self._gather_seconds = limits.commit_gather_seconds
        self._waiting: list[_PendingCommit] = []
        self._sender: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of commits that wait for a round trip."""
        return len(self._waiting)

    async def submit_commit(self, commit: Commit) -> Any:
        """Send a commit with the next group and return the script's answer for it.

        Raises:
            StoreUnavailable: Redis did not answer; the change may or may not have been made.
        """
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailable("too many writes are waiting for the store")
        self._commands.raise_if_stalled()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_PendingCommit(commit, answer))
        if self._sender is None:
            # An empty context, because a group belongs to many callers.
            self._sender = asyncio.create_task(self._send_all(), name="store-commits", context=Context())
        with self._commands.trace_script("commit"):
            return await answer

    async def close(self) -> None:
        """Wait for the commits submitted so far."""
        if self._sender is not None:
            await self._sender

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                if len(self._waiting) < MAX_COMMITS_PER_GROUP:
                    await wait_until_idle(self._gather_seconds)
                group, self._waiting = self._waiting[:MAX_COMMITS_PER_GROUP], self._waiting[MAX_COMMITS_PER_GROUP:]
                await self._send_group(group)
        finally:
            self._sender = None

    async def _send_group(self, group: list[_PendingCommit]) -> None:
        try:
            answer = await self._commands.run_script(
                "commit",
                (*self._script_keys, *(self._document_prefix + pending.commit.name for pending in group)),
                self._events_max_length,
                *(value for pending in group for value in pending.commit),
            )
        except Exception as error:  # noqa: BLE001 - every waiting caller must receive it, whatever it is
            if isinstance(error, StoreUnavailable):
                # The groups behind this one would each wait for the same timeout, one after another.
                group, self._waiting = group + self._waiting, []
            for pending in group:
                if not pending.answer.done():
                    pending.answer.set_exception(error)
            return
        answers = (
            [Unconfirmed(one, answer.replicas) for one in answer.answer] if isinstance(answer, Unconfirmed) else answer
        )
        for pending, one in zip(group, answers, strict=True):
            if not pending.answer.done():  # otherwise its caller was cancelled
                pending.answer.set_result(one)

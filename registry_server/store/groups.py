"""Group commit: one call of ``commit.lua`` makes the changes of many tasks, each of them independently."""

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from registry_server.store.batches import Batches
from registry_server.store.commands import Commands
from registry_server.store.limits import StoreLimits
from registry_server.store.retention import EventRetention
from registry_server.store.values import Unconfirmed

# Limits one call of the script to a few milliseconds, during which Redis serves no other client.
MAX_COMMITS_PER_GROUP: Final = 128
# About the processor time that this process takes for a commit and its call.
_GATHER_SECONDS_PER_COMMIT: Final = 0.0005


class Commit(NamedTuple):
    """One change of one service: the arguments that ``commit.lua`` takes for it, in this order."""

    epoch: str
    """Epoch of the state that the caller has seen."""
    applied_revision: int
    """Newest revision that the caller has applied."""
    name: str
    """Name of the service."""
    expected_revision: int
    """Revision that the service must be at; 0 = it must not exist."""
    operation: Literal["put", "touch", "delete"]
    owner: str
    """Identity that becomes the owner of a new service, or an empty string."""
    exclusive: int
    """1 = refuse a change of a service with another owner, and with ``put`` own a service without one."""
    max_services: int
    """Number of services that the owner may have; 0 = no limit."""
    event_type: int = 0
    """``EventType`` of the event; ``touch`` publishes none."""
    event_reason: int = 0
    """``EventReason`` of the event."""
    record: bytes = b""
    """Serialised ``Service`` without its revision; only for ``put``."""
    document: bytes = b""
    """The service's JSON document up to the value of its last field, the revision; empty for ``delete``."""
    ttl_ms: int = 0
    """Length of the lease; 0 = permanent."""
    renew_lease: int = 0
    """1 = start a new lease, 0 = keep the lease unless its length changes."""
    check: bytes | str = "="
    """New newest probe result: see ``CheckChange``."""
    seen_check: bytes | str = "*"
    """Newest probe result that the caller has read: see ``CheckChange``."""


class CommitGroups(Batches[Commit]):
    """Sends commits in groups.

    A round trip costs this process more than the commit itself. While commits arrive in groups, a group waits for
    further ones, on a timer: waiting in passes of the event loop cost 150 µs a commit (measured with 64 callers). A
    single caller, and the first commit after a pause, wait for none.
    """

    def __init__(
        self,
        commands: Commands,
        document_prefix: str,
        retention: EventRetention,
        *,
        limits: StoreLimits,
    ) -> None:
        """Create an empty queue.

        Args:
            commands: Pipeline to send the groups to.
            document_prefix: Key of a service's document, without the service's name.
            retention: Number of events that the stream keeps.
            limits: How long a busy process collects commits.
        """
        super().__init__(
            "store-commits",
            MAX_COMMITS_PER_GROUP,
            gather_seconds=limits.commit_gather_seconds,
            gather_seconds_per_item=_GATHER_SECONDS_PER_COMMIT,
        )
        self._commands = commands
        self._document_prefix = document_prefix
        self._retention = retention

    async def submit_commit(self, commit: Commit) -> Any:
        """Send a commit with the next group and return the script's answer for it.

        Raises:
            StoreUnavailable: Redis did not answer; the change may or may not have been made.
        """
        self._commands.raise_if_stalled()
        answer = self.submit(commit)
        with self._commands.trace_script("commit"):
            return await answer

    async def _send(self, batch: list[Commit]) -> Sequence[Any]:
        answer = await self._commands.run_script(
            "commit",
            self._retention.max_length,
            *(value for commit in batch for value in commit),
            keys=[self._document_prefix + commit.name for commit in batch],
        )
        if isinstance(answer, Unconfirmed):
            return [Unconfirmed(one, answer.replicas) for one in answer.answer]
        return list(answer)

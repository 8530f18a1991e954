"""Arguments and results of the store."""

from typing import Any, Final, Literal, NamedTuple, cast

from ossa.registry.v1.event_pb2 import EventReason, EventType


class Position(NamedTuple):
    """A point in the history of changes. Revisions of different epochs are not comparable."""

    epoch: str
    revision: int


class StoredEvent(NamedTuple):
    """One entry of the event stream."""

    epoch: str
    revision: int
    type: EventType.ValueType
    reason: EventReason.ValueType
    at_ms: int
    """Commit time, by the clock of Redis."""
    name: str
    after: bytes
    """Serialised ``Service`` after the change; empty if the service was removed."""
    before: bytes
    """Serialised ``Service`` before the change; empty if the service did not exist."""
    error: str = ""
    """Error of the registry itself; only for events that concern no service."""
    owner: str = ""
    """Owner of the service after the change; empty if it has none."""


class DamagedEvent(Exception):
    """An entry of the event stream cannot be decoded: another program wrote it, or changed it."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        super().__init__(f"the event of revision {revision} cannot be decoded")


class Conflict(NamedTuple):
    """A change was refused because the service, or its newest probe result, is not the one that the caller has read."""

    newest: int
    """Revision of the registry at that time; a replica at this revision contains the cause of the conflict."""
    stored: int
    """Revision of the service at that time; 0 if it was not stored or its record was damaged."""


class CheckChange(NamedTuple):
    """What a commit does with the newest probe result of its service."""

    new: bytes | Literal["="]
    """Result to store; ``=`` = keep the stored one, empty = delete it."""
    seen: bytes | Literal["*"] = "*"
    """Result that the caller has read, empty = none: if the store holds another one, the commit is a conflict. ``*`` =
    any."""


KEEP_CHECK: Final = CheckChange("=")
FORGET_CHECK: Final = CheckChange(b"")


class EpochChanged:
    """A change was refused because the store is in another epoch than the caller, or behind the caller."""


class Unconfirmed(NamedTuple):
    """An answer of Redis to a write that too few replicas acknowledged."""

    answer: Any
    replicas: int
    """Number of replicas that acknowledged it."""


class ProbeResult(NamedTuple):
    """The newest probe result of one service."""

    name: str
    health: bytes
    """Serialised ``Health``; empty = keep the stored one."""
    renew: bool
    """Whether to renew the service's lease."""


class StoreSizes(NamedTuple):
    """Numbers of entries in the store at one revision."""

    revision: int
    records: int
    leases: int
    ttls: int
    """Services whose length of lease is stored."""
    owners: int
    """Services with an owner."""
    owned: int
    """Owners whose services are counted."""


class SweepResult(NamedTuple):
    """Outcome of a sweep."""

    removed: list[str]
    """Names of services removed because their leases expired."""
    next_expiry_seconds: float | None
    """Time until the next lease expires; ``None`` if there is none."""
    shift_seconds: float
    """Time by which all deadlines were shifted, because no process swept for that long or the clock was changed."""
    missing_documents: list[str]
    """Names of services whose documents must be written again; repeated at every sweep until they are."""
    sizes: StoreSizes | None = None
    """``None`` if the store was not swept."""


def parse_event(entry_id: bytes, fields: dict[bytes, bytes]) -> StoredEvent:
    """Parse an entry of the event stream.

    Raises:
        DamagedEvent: It is not one that a registry has written.
    """
    revision = int(entry_id.partition(b"-")[0])
    try:
        return StoredEvent(
            epoch=fields[b"e"].decode(),
            revision=revision,
            type=cast("EventType.ValueType", int(fields[b"k"])),
            reason=cast("EventReason.ValueType", int(fields[b"r"])),
            at_ms=int(fields[b"t"]),
            name=fields[b"n"].decode(),
            after=fields[b"s"],
            before=fields[b"b"],
            error=fields.get(b"x", b"").decode(),  # earlier versions wrote neither this field
            owner=fields.get(b"o", b"").decode(),  # nor this one
        )
    except (LookupError, ValueError) as error:
        raise DamagedEvent(revision) from error

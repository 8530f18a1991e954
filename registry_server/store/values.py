"""What the store takes and gives."""

from typing import Any, NamedTuple, cast

from ossa.registry.v1.event_pb2 import EventReason, EventType


class Position(NamedTuple):
    """A point in the history of changes. Revisions of different epochs have nothing to do with each other."""

    epoch: str
    revision: int


class StoredEvent(NamedTuple):
    """One entry of the event stream."""

    epoch: str
    revision: int
    type: EventType.ValueType
    reason: EventReason.ValueType
    at_ms: int
    """When it was committed, by the clock of Redis."""
    name: str
    after: bytes
    """Serialised ``Service`` after the change; empty if it is gone."""
    before: bytes
    """Serialised ``Service`` before the change; empty if there was none."""
    error: str = ""
    """What is wrong with the registry itself; only for events of no service."""
    owner: str = ""
    """Who owns the service after the change; empty for nobody."""


class Conflict(NamedTuple):
    """A change was refused: the service is not at the revision that the change rests on."""

    newest: int
    """Revision of the registry when it was refused: who has applied it sees why."""


class EpochChanged:
    """A change was refused: the store has begun another epoch than the one that the change rests on."""


class Unconfirmed(NamedTuple):
    """An answer of Redis whose change too few replicas have."""

    answer: Any
    replicas: int
    """How many have it."""


class ProbeResult(NamedTuple):
    """The newest check of one service."""

    name: str
    health: bytes
    """Serialised ``Health``."""
    renew: bool
    """Whether it renews the lease."""


class Sweep(NamedTuple):
    """Outcome of a sweep."""

    removed: list[str]
    next_in: float | None
    """Seconds until the next lease ends; ``None`` if none will."""
    moved: float
    """Seconds by which all leases were moved, for a time in which nobody swept."""
    bare: list[str]
    """Names of services whose document must be written again; told at every sweep until it is."""


def stored_event(entry_id: bytes, fields: dict[bytes, bytes]) -> StoredEvent:
    """Reads an entry of the event stream, as Redis gives it."""
    return StoredEvent(
        epoch=fields[b"e"].decode(),
        revision=int(entry_id.partition(b"-")[0]),
        type=cast("EventType.ValueType", int(fields[b"k"])),
        reason=cast("EventReason.ValueType", int(fields[b"r"])),
        at_ms=int(fields[b"t"]),
        name=fields[b"n"].decode(),
        after=fields[b"s"],
        before=fields[b"b"],
        error=fields.get(b"x", b"").decode(),  # versions before this one wrote none
        owner=fields.get(b"o", b"").decode(),
    )

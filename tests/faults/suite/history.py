"""What many clients asked of a registry and what they were told: the history that the checker judges.

Times are seconds since 1970 by the clock of this machine, which clients and registries share. Every write has a version
of its own, so that whoever sees a state knows which call made it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

Kind = Literal["register", "create", "update", "unregister", "heartbeat", "get", "list"]
Outcome = Literal["ok", "refused", "unknown"]
Position = tuple[str, int]
"""Epoch and revision."""
State = tuple[str, int]
"""Version and revision of a service."""
States = dict[str, State]

WRITES: tuple[Kind, ...] = ("register", "create", "update", "unregister")
REGISTERED = "EVENT_TYPE_SERVICE_REGISTERED"
GONE = "EVENT_TYPE_SERVICE_UNREGISTERED"
SNAPSHOT = "EVENT_TYPE_SERVICE_SNAPSHOT"
RESYNC = "EVENT_REASON_RESYNC"
EXPIRED = "EVENT_REASON_LEASE_EXPIRED"


@dataclass(slots=True)
class Call:
    """One call of one client. Until its answer comes it is ``unknown``: it may have happened, or happen yet."""

    client: str
    process: int
    kind: Kind
    name: str
    start: float
    version: str = ""
    """What it writes."""
    ttl: float = 0
    """Seconds that the lease lasts which it begins; 0 = longer than the run."""
    expected: int = 0
    """``expected_revision``."""
    min_revision: int = 0
    strong: bool = False
    end: float = float("inf")
    outcome: Outcome = "unknown"
    code: str = ""
    """Status and reason of an answer that was an error, such as ``ABORTED REVISION_MISMATCH``."""
    revision: int = 0
    """The service's in the answer; of a ``list``, where the process stood."""
    seen: str = ""
    """Version in the answer; empty if the service was not there."""
    states: States = field(default_factory=dict)
    """What a ``list`` found."""

    def __str__(self) -> str:
        asked = f" {self.version}" * bool(self.version) + f" at {self.expected}" * bool(self.expected)
        floor = f" from {self.min_revision}" * bool(self.min_revision) + " strong" * self.strong
        answer = f"{self.outcome} {self.code}{self.seen}".rstrip()
        return f"{self.client}'s {self.kind} {self.name}{asked}{floor} -> {answer} at revision {self.revision}"


@dataclass(slots=True)
class Told:
    """One event."""

    type: str
    reason: str
    name: str
    version: str
    revision: int
    of: int
    """Revision of the service in it."""
    at: float
    """When it was committed, by the clock of the store."""

    def __str__(self) -> str:
        kind = self.type.removeprefix("EVENT_TYPE_SERVICE_").lower()
        return f"{self.name} {kind} {self.version} ({self.reason.removeprefix('EVENT_REASON_').lower()})"


@dataclass(slots=True)
class Message:
    """One message of a watch."""

    watcher: str
    process: int
    at: float
    epoch: str
    revision: int
    events: list[Told]
    complete: bool = False
    """It ends a snapshot."""
    fresh: bool = False
    """It begins a watch that does not go on from a cursor."""


@dataclass(slots=True)
class Follower:
    """What one of very many watchers saw, in short: each checks for itself that it is told every revision once."""

    watcher: str
    first: int
    last: int
    hole: str = ""
    """Where its history first went wrong."""


@dataclass(slots=True)
class Belief:
    """The state in the end, as a process, or Redis itself, has it."""

    who: str
    epoch: str
    revision: int
    states: States


@dataclass(slots=True)
class Promises:
    """What holds under the faults of a run."""

    may_lose: bool = False
    """Acknowledged writes may be lost, if a new epoch says so."""
    may_skip: bool = False
    """Watchers may be told a difference in place of each change, or to start over."""
    reads_go_on: bool = True
    """No read fails that asks for no revision."""
    clock_is_true: bool = True
    """The clock of Redis is that of the machine."""


@dataclass(slots=True)
class History:
    """One run."""

    title: str = ""
    promises: Promises = field(default_factory=Promises)
    calls: list[Call] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    """In the order in which each watcher got them."""
    followers: list[Follower] = field(default_factory=list)
    beliefs: list[Belief] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What was wrong without anybody's judgement: a process that did not come back, an error in a log."""

    def write(self, path: Path) -> None:
        """Writes it as lines of JSON."""
        lines: list[tuple[str, Any]] = [
            ("run", {"title": self.title, "promises": self.promises, "complaints": self.complaints}),
            *(("call", call) for call in self.calls),
            *(("message", message) for message in self.messages),
            *(("follower", follower) for follower in self.followers),
            *(("belief", belief) for belief in self.beliefs),
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps([kind, line]) + b"\n" for kind, line in lines))

    @classmethod
    def read(cls, path: Path) -> "History":
        """Reads what ``write`` wrote."""
        history = cls()
        for line in path.read_bytes().splitlines():
            kind, fields = orjson.loads(line)
            match kind:
                case "run":
                    history.title, history.complaints = fields["title"], fields["complaints"]
                    history.promises = Promises(**fields["promises"])
                case "call":
                    fields["end"] = float("inf") if fields["end"] is None else fields["end"]  # JSON has no infinity
                    history.calls.append(Call(**{**fields, "states": _states(fields["states"])}))
                case "message":
                    events = [Told(**event) for event in fields["events"]]
                    history.messages.append(Message(**{**fields, "events": events}))
                case "follower":
                    history.followers.append(Follower(**fields))
                case _:
                    history.beliefs.append(Belief(**{**fields, "states": _states(fields["states"])}))
        return history


def _states(fields: dict[str, list[Any]]) -> States:
    return {name: (version, revision) for name, (version, revision) in fields.items()}

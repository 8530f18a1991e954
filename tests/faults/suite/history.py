"""The history of a run: the calls of all clients, and the messages of all watchers. Input of the checker.

Times are seconds since 1970 by the clock of this machine, which clients and registries share. Every write has a unique
version, which identifies the call that caused a state.
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
    """A call of a client. Without a response its outcome is ``unknown``: it may or may not take effect, even later."""

    client: str
    process: int
    kind: Kind
    name: str
    start: float
    version: str = ""
    """Version that the call writes."""
    ttl: float = 0
    """Length of the lease in seconds; 0 = longer than the run."""
    expected: int = 0
    """``expected_revision``."""
    min_revision: int = 0
    strong: bool = False
    end: float = float("inf")
    outcome: Outcome = "unknown"
    code: str = ""
    """Code and reason of an error, such as ``ABORTED REVISION_MISMATCH``."""
    revision: int = 0
    """Revision of the service in the response; for ``list``, the revision of the process."""
    seen: str = ""
    """Version in the response; empty if the service was not found."""
    states: States = field(default_factory=dict)
    """Services in the response of a ``list``."""

    def __str__(self) -> str:
        request = f" {self.version}" * bool(self.version) + f" at {self.expected}" * bool(self.expected)
        floor = f" from {self.min_revision}" * bool(self.min_revision) + " strong" * self.strong
        response = f"{self.outcome} {self.code}{self.seen}".rstrip()
        return f"{self.client}'s {self.kind} {self.name}{request}{floor} -> {response} at revision {self.revision}"


@dataclass(slots=True)
class ObservedEvent:
    """An event that a watcher received."""

    type: str
    reason: str
    name: str
    version: str
    revision: int
    service_revision: int
    """Revision of the service in the event."""
    at: float
    """Commit time by the clock of the store."""

    def __str__(self) -> str:
        kind = self.type.removeprefix("EVENT_TYPE_SERVICE_").lower()
        return f"{self.name} {kind} {self.version} ({self.reason.removeprefix('EVENT_REASON_').lower()})"


@dataclass(slots=True)
class Message:
    """A message of a watch."""

    watcher: str
    process: int
    at: float
    epoch: str
    revision: int
    events: list[ObservedEvent]
    complete: bool = False
    """Whether the message ends a snapshot."""
    fresh: bool = False
    """Whether this is the first message of a watch without a cursor."""


@dataclass(slots=True)
class Follower:
    """Summary of one watcher of the crowd, which checks itself that it receives every revision once."""

    watcher: str
    first: int
    last: int
    error: str = ""
    """First error in its history."""


@dataclass(slots=True)
class FinalState:
    """The state of a process, or of Redis, at the end of the run."""

    owner: str
    epoch: str
    revision: int
    states: States


@dataclass(frozen=True, slots=True)
class Removal:
    """What a process returns about a service that is not registered. ``revision`` is 0 if it knows no removal."""

    revision: int
    """Revision of the removal, of ``GetService``."""
    reason: str
    """Reason of the removal, of ``GetService``."""
    explained: int
    """Revision of the removal, of ``ExplainDiscovery``."""
    summary: str


@dataclass(slots=True)
class Account:
    """What a process returns about the past at the end of the run."""

    owner: str
    epoch: str
    revision: int
    """Revision of the process before it was asked."""
    oldest: int
    """``oldest_revision`` of ``ListEvents``."""
    events: list[ObservedEvent]
    """All pages of ``ListEvents``."""
    removals: dict[str, Removal]
    """Names of calls that are not registered."""


@dataclass(slots=True)
class Promises:
    """Promises that hold under the faults of a run."""

    may_lose: bool = False
    """Acknowledged writes may be lost if a new epoch starts."""
    may_skip: bool = False
    """Watchers may receive resync events instead of every change, or may have to start over."""
    reads_succeed: bool = True
    """Reads without ``min_revision`` or strong consistency do not fail."""
    clock_is_correct: bool = True
    """The clock of Redis equals the clock of the machine."""


@dataclass(slots=True)
class History:
    """The history of one run."""

    title: str = ""
    promises: Promises = field(default_factory=Promises)
    calls: list[Call] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    """Messages, in the order of each watcher."""
    followers: list[Follower] = field(default_factory=list)
    final_states: list[FinalState] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Problems found during the run: a process that did not recover, an error in a log."""

    def write(self, path: Path) -> None:
        """Write the history as JSON lines."""
        lines: list[tuple[str, Any]] = [
            ("run", {"title": self.title, "promises": self.promises, "problems": self.problems}),
            *(("call", call) for call in self.calls),
            *(("message", message) for message in self.messages),
            *(("follower", follower) for follower in self.followers),
            *(("final_state", state) for state in self.final_states),
            *(("account", account) for account in self.accounts),
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps([kind, line]) + b"\n" for kind, line in lines))

    @classmethod
    def read(cls, path: Path) -> "History":
        """Read a history written by ``write``."""
        history = cls()
        for line in path.read_bytes().splitlines():
            kind, fields = orjson.loads(line)
            match kind:
                case "run":
                    history.title, history.problems = fields["title"], fields["problems"]
                    history.promises = Promises(**fields["promises"])
                case "call":
                    fields["end"] = float("inf") if fields["end"] is None else fields["end"]  # JSON has no infinity
                    history.calls.append(Call(**{**fields, "states": _states(fields["states"])}))
                case "message":
                    events = [ObservedEvent(**event) for event in fields["events"]]
                    history.messages.append(Message(**{**fields, "events": events}))
                case "follower":
                    history.followers.append(Follower(**fields))
                case "account":
                    events = [ObservedEvent(**event) for event in fields["events"]]
                    removals = {name: Removal(**removal) for name, removal in fields["removals"].items()}
                    history.accounts.append(Account(**{**fields, "events": events, "removals": removals}))
                case _:
                    history.final_states.append(FinalState(**{**fields, "states": _states(fields["states"])}))
        return history


def _states(fields: dict[str, list[Any]]) -> States:
    return {name: (version, revision) for name, (version, revision) in fields.items()}

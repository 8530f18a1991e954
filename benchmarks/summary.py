"""The first table of the benchmark page: what matters most, read from the sections below it."""

import re
import statistics
from typing import Final, NamedTuple

_ROW: Final = re.compile(r"^\| (.*?) \| (.*?) \| .*\|.*\|$", re.MULTILINE)
_NUMBER: Final = re.compile(r"-?[\d,]*\.?\d+(?:e[+-]?\d+)?")
_TABLE: Final = re.compile(r"^### (.*?)\n(.*?)(?=^###? |\Z)", re.MULTILINE | re.DOTALL)


class Value(NamedTuple):
    """A value of a section: the median of its rows with this label."""

    scenario: str
    table: str
    """Beginning of the title of the table."""
    label: str
    number: int = 0
    """Position of the number in the row."""
    unit: str = ""
    inverse: bool = False
    """Whether to show the inverse: a ratio of times becomes a ratio of rates."""

    def read(self, sections: dict[str, str]) -> float | None:
        """Return the value, or ``None`` if the page does not contain it."""
        found = [
            float(numbers[self.number].replace(",", ""))
            for title, rows in _TABLE.findall(sections.get(self.scenario, ""))
            if title.startswith(self.table)
            for label, value in _ROW.findall(rows)
            if label == self.label and len(numbers := _NUMBER.findall(value)) > self.number
        ]
        if not found:
            return None
        value = statistics.median(found)
        return 1 / value if self.inverse else value

    def text(self, sections: dict[str, str]) -> str:
        """Return the value with its unit, or nothing."""
        value = self.read(sections)
        if value is None:
            return ""
        return (
            f"{value:,.0f} {self.unit}".rstrip() if self.unit and value >= 10 else f"{value:.2f} {self.unit}".rstrip()
        )


class Line(NamedTuple):
    """A line of the table."""

    task: str
    own: Value
    bare: Value | None
    """Rate relative to the bare program: 1 = as fast."""
    etcd: Value | None
    """Rate relative to etcd."""
    eureka: str
    """Rate relative to Eureka, as measured once."""
    reason: str
    """Why another program is ahead."""


_LAST: Final = "last delivery: bare loop, registry, etcd"
_TO_BARE: Final = "ratio of the last delivery to the bare loop, median"
_TO_ETCD: Final = "delivery time of etcd relative to the registry, median"
_REGISTER: Final = ("registrations", "RegisterService")
_STEADY: Final = ("fanout", "100 changes per second")
_DELIVERY: Final = "start of the change to its delivery: p50, p99, maximum"
LINES: Final = (
    Line(
        "Read one service",
        Value("queries", "GetService", "echo, registry (calls/s)", 1, "/s"),
        Value("queries", "GetService", "ratio to the bare echo, median"),
        Value("queries", "Comparison", "point read: ratio to etcd, median"),
        "0.73",
        "etcd and Eureka are compiled and use all cores in one process, a Python worker uses one",
    ),
    Line(
        "Read one service, two workers",
        Value("workers", "GetService", "1 echo, 2 echoes; 1 worker, 2 workers; etcd (calls/s)", 3, "/s"),
        None,
        Value("workers", "GetService", "two workers: ratio to etcd's point read, median"),
        "",
        "as above; the load generator takes part of the second core",
    ),
    Line(
        "Query by capability: 50 of 10,000 services",
        Value("queries", "Comparison", "capability query: etcd, registry; point read: etcd, registry", 1, "/s"),
        Value("discover", "DiscoverServices", "ratio to the bare echo, median"),
        Value("queries", "Comparison", "capability query: ratio to etcd, median"),
        "1.06",
        "",
    ),
    Line(
        "Register one service per call",
        Value(*_REGISTER, "echo, new, changed, unchanged, etcd (calls/s)", 1, "/s"),
        Value(*_REGISTER, "new: ratio to the bare echo, median"),
        Value(*_REGISTER, "new: ratio to etcd's Put, median"),
        "0.10",
        "validated, indexed and committed to Redis by Python; etcd stores opaque bytes, Eureka only changes memory",
    ),
    Line(
        "Register in batches of 500",
        Value("registrations", "BatchRegisterServices", "services per second, median", 0, "/s"),
        None,
        None,
        "",
        "",
    ),
    Line(
        "Renew leases, 1,000 in a message",
        Value("heartbeats", "Heartbeats", "one by one, batched, streamed, etcd (leases/s)", 2, "/s"),
        None,
        Value("heartbeats", "Heartbeats", "streamed: ratio to etcd's LeaseKeepAlive, median"),
        "11",
        "",
    ),
    Line(
        "One change to 1,000 watchers, the last of them",
        Value("fanout", "1 event to 1,000", _LAST, 1, "ms"),
        Value("fanout", "1 event to 1,000", _TO_BARE, inverse=True),
        Value("fanout", "1 event to 1,000", _TO_ETCD),
        "",
        "each delivery is one write, which grpc.aio makes on one core and Go on all",
    ),
    Line(
        "One change to 5,000 watchers with a connection each, the last of them",
        Value("fanout", "1 event to 5,000", _LAST, 1, "ms"),
        Value("fanout", "1 event to 5,000", _TO_BARE, inverse=True),
        Value("fanout", "1 event to 5,000", _TO_ETCD),
        "",
        "as above",
    ),
    Line(
        "1,000 changes to 100 watchers",
        Value("fanout", "1,000 events", _LAST, 1, "ms"),
        Value("fanout", "1,000 events", "ratio of deliveries/s to the bare loop, median"),
        Value("fanout", "1,000 events", _TO_ETCD),
        "",
        "",
    ),
    Line(
        "100 changes/s to 1,000 watchers with a connection each, p99 of a delivery",
        Value(*_STEADY, f"registry: {_DELIVERY}", 1, "ms"),
        Value(*_STEADY, "p99 of the delivery: ratio to the bare loop", inverse=True),
        Value(*_STEADY, "p99 of the delivery: etcd relative to the registry"),
        "",
        "100,000 deliveries a second are more than one core can write singly: the registry joins them",
    ),
    Line(
        "A client sees a change",
        Value("watch", "Watch", "registration on one process to event on the other, p50", 0, "ms"),
        None,
        None,
        "170 (clients poll every 0.5 s at best, and every 22 s by default)",
        "",
    ),
    Line(
        "REST: list of 50 services",
        Value("rest", "GET /services", "42,694 bytes: bare handler, registry", 1, "/s"),
        Value("rest", "GET /services", "ratio to the bare handler, median"),
        None,
        "",
        "",
    ),
    Line(
        "Memory of a worker and Redis, 1,000,000 services",
        Value("large", "One worker", "1,000,000: worker and Redis", 0, "GiB"),
        None,
        None,
        "2 to 5",
        "",
    ),
)

_TEXT: Final = """\
Rates of this registry relative to other programs: 2 is twice as fast, 0.5 half as fast. Times are compared by their
inverse. All of them are explained below."""
_EUREKA: Final = """\
The values for Eureka (2.0.6, Spring Boot 4, Java 17) were measured once, in November 2026, on 2 cores, at commit
8fcd314, and are not part of `make bench`: by REST except for batched heartbeats. Eureka is further ahead for single
heartbeats by REST (0.32) and for deregistrations (0.17)."""


def summary(sections: dict[str, str]) -> str:
    """Return the table in Markdown.

    Args:
        sections: Text of each scenario on the page.
    """
    rows = [
        "| Task | Here | to the bare library | to etcd 3.6 | to Eureka | Why others are ahead |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for line in LINES:
        peers = (value.text(sections) if value else "" for value in (line.bare, line.etcd))
        rows.append(
            f"| {line.task} | {line.own.text(sections)} | {' | '.join(peers)} | {line.eureka} | {line.reason} |"
        )
    return "\n\n".join((_TEXT, "\n".join(rows), _EUREKA))

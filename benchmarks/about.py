"""What each scenario shows, for the page: where a peer is ahead it says so, and why."""

from typing import Final

ABOUT: Final = {
    "start": (
        "From the command line to serving: on an empty data directory, and on what the first start left. Python and "
        "its packages take most of it; a Go program such as etcd is there sooner."
    ),
    "catalog": (
        "The catalog in one process, without the network: how fast it is loaded, what a service takes of memory, "
        "and what a query costs that nobody asked before, and one that somebody did."
    ),
    "large": (
        "A worker holds all services in memory, and so does Redis. Redis is filled in the store's own format, a "
        "registry is started on it, and asked: what a call costs must not depend on how many services there are. "
        "Each further worker takes its own copy; etcd would take less, since it keeps no index, and answers a query "
        "by sending all."
    ),
    "discover": (
        "A query that was asked before, beside an echo of as many bytes: the answer is a join of ready-made bytes, "
        "so what is left is gRPC."
    ),
    "queries": (
        "The capability query over fleets of three sizes, quiet and while services change, and beside etcd. etcd "
        "has no query but for keys: its client reads everything and filters, so it is far behind there. For the "
        "point read, the one thing that it is made for, etcd is ahead: it is compiled and uses all processors in "
        "one process, where a Python process has one; more workers narrow that. Without "
        "its threads scheduled for throughput GetService would be at 0.87 of the echo."
    ),
    "writes": (
        "A registration is validated, indexed, committed by one script in Redis with lease, document and event, and "
        "answered once this process has applied it; etcd's `Put` stores opaque bytes, and is compiled: where its "
        "rate is above ours, that is why. In calls that carry one service each, gRPC takes about 210 us of the "
        "event loop's thread, and all that is the registry's own about 400; in batches, where the same code runs many "
        "times in a row, that is about 230. Half of the echo's rate would leave it 210: whoever registers a fleet "
        "does so in batches. Many leases are renewed by one message here; etcd takes a message for each."
    ),
    "rest": "The same query over REST, beside a bare aiohttp handler that returns the same bytes.",
    "watch": (
        "A change is committed through one process and received from another one, both on one Redis: the way is "
        "commit, stream, follower, watcher."
    ),
    "fanout": (
        "An event to everyone, beside a bare grpc.aio loop that has the bytes in its hand and only writes them; the "
        "registry commits to Redis first and reads the event from its stream. For one event etcd is ahead: each "
        "delivery costs a write of its own, which Go makes on all processors, and grpc.aio on one. With many events "
        "the registry puts those that wait into one message, and leaves the bare loop behind."
    ),
    "failures": (
        "How long a watcher does not know yet. For a dead endpoint the floor is arithmetic: as many intervals as "
        "failures are wanted, and a timeout. For a lease it is its length: etcd looks twice a second for those that "
        "ran out; the registry looks when the next one ends, and each second."
    ),
    "probes": (
        "Health probes beside a bare aiohttp client that makes as many requests: do they begin on time, do calls "
        "notice them, and how many does one processor make?"
    ),
    "workers": (
        "What a second worker process on the same port gains, beside a second bare echo. The load generator shares "
        "the processors, so that neither doubles where there are two."
    ),
    "resolve": (
        "The SDK's cache picks an instance in process, fed by a watch. There is no peer for it but to ask each time."
    ),
    "failover": (
        "The primary of a Redis under Sentinel is killed while agents write and read, also when its replicas lack what "
        "was written last: how long no write is acknowledged, which is mostly the time that Sentinel waits before it "
        "believes it, whether a read fails, and whether something acknowledged is missing in the end."
    ),
    "rolling": (
        "10,000 agents heartbeat and 1,000 watch while two workers are restarted one after the other: whether a lease "
        "is lost, whether a watcher misses something, and whether memory stays where it was for ten minutes."
    ),
}

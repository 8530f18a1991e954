"""Description of each scenario for the page, including where a compared system is faster and why."""

from typing import Final

ABOUT: Final = {
    "start": (
        "Time from the command line until the registry serves: on an empty data directory, and on the data of the "
        "first start. Python and its packages take most of it; a Go program such as etcd starts faster."
    ),
    "catalog": (
        "The catalog in one process, without the network: time to load it, memory per service, and latency of a "
        "cached and an uncached query."
    ),
    "large": (
        "Every worker holds all services in memory, and so does Redis. The benchmark writes a fleet to Redis in the "
        "store's format, starts a registry on it and calls it: the cost of a call must not depend on the number of "
        "services. Each further worker holds its own copy. etcd would need less memory because it keeps no index, but "
        "it answers a query by returning every service."
    ),
    "discover": (
        "A cached query compared with an echo of the same size: the response is a join of prebuilt bytes, so the "
        "remaining cost is that of gRPC."
    ),
    "queries": (
        "The capability query over fleets of three sizes, idle and while services change, compared with etcd. etcd "
        "only supports queries by key: its client reads every key and filters, which is far slower. For the point "
        "read, the operation that etcd is built for, etcd is faster: it is compiled and uses all processors in one "
        "process, whereas a Python process uses one; more workers reduce the difference. Without batch scheduling of "
        "its threads, GetService would run at 0.87 of the rate of the echo."
    ),
    "search": (
        "Search by text in one process, without the network: the relevance of its results on the prepared queries in "
        "`benchmarks/relevance`, of which the held-out half was not used to develop the ranking, and its cost over a "
        "fleet made of the agents of that set. The first search of a process fills the index."
    ),
    "registrations": (
        "A registration is validated, indexed, and committed together with lease, document and event by one script in "
        "Redis; the response is sent once this process has applied the change. etcd's `Put` stores opaque bytes and is "
        "compiled, which is why its rate can be higher. In calls that carry one service each, gRPC takes about 210 us "
        "of the event loop's thread and the registry's own code about 300 us. The bound, half of the echo's rate, "
        "allows the latter 210 us. In batches, where the same code runs many times in a row, it takes about 190 us for "
        "each service: register fleets in batches. The earlier version is commit 8fcd314 with the same dependencies."
    ),
    "heartbeats": "One message renews many leases here; etcd needs one message for each lease.",
    "rest": (
        "Reads over REST, compared with a bare aiohttp handler that returns the same bytes; heartbeats and "
        "registrations, compared with commit 8fcd314 with the same dependencies; and the size of all services as gzip."
    ),
    "connections": (
        "Every agent has a connection and a KeepAlive stream of its own, as with the SDK, and sends a heartbeat every "
        "10 s. The agents are a compiled client on the same machine with the delays of the Python SDK. Memory and "
        "processor time are those of the registry's process, all threads and idle connections included. After SIGTERM "
        "the registry and its embedded Redis start again. The bounds of set-up, memory and processor time are not held "
        "yet: with 4,000 agents, 530 a second were set up, at 1.9 ms of processor time each; an agent took 42 KiB, of "
        "which an idle HTTP/2 connection is 15; a heartbeat cost 0.45 ms at 400 a second, and more at lower rates, "
        "probably because fewer share a renewal. About a quarter of the time is spent in gRPC's own threads. "
        "Smaller read buffers and a single malloc arena made no difference."
    ),
    "watch": (
        "A change is committed through one process and received from another; both use one Redis. The path is commit, "
        "stream, follower, watcher."
    ),
    "fanout": (
        "An event to every watcher, compared with a bare grpc.aio loop that only writes prebuilt bytes; the registry "
        "first commits to Redis and reads the event from its stream. For a single event etcd is faster: each delivery "
        "costs one write, which Go distributes over all processors and grpc.aio makes on one. With many events the "
        "registry joins pending events into one message and is faster than the bare loop. At a steady rate, times "
        "count from the scheduled start of the change, so that they include the commit and any queue; the bare "
        "loop commits nothing, creates its events itself, and also joins those that a stream has not written yet."
    ),
    "failures": (
        "Time until a watcher is notified of a failure. A dead endpoint should be reported within the failure "
        "threshold times the probe interval, plus one timeout; an endpoint that refuses the connection at once is "
        "reported earlier. A lease ends after its length: etcd checks for expired leases twice a second; the registry "
        "checks when the next lease expires, and every second."
    ),
    "probes": (
        "Health probes compared with a bare aiohttp client that sends as many requests: whether they start on time, "
        "how much they slow down other calls, and how many of them one processor can send."
    ),
    "workers": (
        "Gain from a second worker process on the same port, compared with a second bare echo, and the rate of two "
        "workers compared with etcd, which uses all processors in one process. The load generator shares the "
        "processors, so neither rate doubles on two processors."
    ),
    "resolve": (
        "The SDK's cache, which a watch keeps up to date, selects an instance in process. The alternative is a query "
        "for each selection."
    ),
    "sizing": (
        "Two loads compared with the sizing guide: many connections with few changes, and few connections with many. "
        "One worker, one Redis. A measured value of up to 1.1 of the estimate is accepted; estimates are rounded up."
    ),
    "failover": (
        "The primary of a Redis under Sentinel is killed while agents write and read, also when its replicas lack the "
        "newest writes. Measured are the time without an acknowledged write, most of which is Sentinel's detection "
        "time, the number of failed reads, and the number of acknowledged writes that are missing afterwards."
    ),
    "rolling": (
        "10,000 agents send heartbeats and 1,000 clients watch while two workers are restarted one after the other. "
        "Measured are lost leases, changes missed by watchers, and how far memory deviates over ten minutes."
    ),
}

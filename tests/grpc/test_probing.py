"""Health checks through the front door: what a probe finds, and what follows from it."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.health import standstill
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    PATIENCE,
    REGISTERED,
    UNHEALTHY,
    UNKNOWN,
    UNREGISTERED,
    UPDATED,
    Watch,
    age_lease,
    discover,
    eventually,
    failure,
    failure_in,
    get,
    health_of,
    redis_client,
    register,
    report,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

ON_DEMAND = {"interval_ms": 3_600_000, "timeout_ms": 10_000}
"""Nothing is probed after the first time but what a test asks for, and however busy the machine is, in time."""
OFTEN = {"interval_ms": 100, "timeout_ms": 100}
"""For tests that a probe which the machine was too busy for does not hurt."""
HANGS = "no answer within 200 ms"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Target = Callable[[], AbstractAsyncContextManager[int]]


@pytest.fixture(autouse=True)
def never_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine this process may not run for a while; rightly no probe counts then, but here each must."""
    monkeypatch.setattr(standstill, "_LONGEST_GAP", 600.0)


# --- agents -------------------------------------------------------------------------------------------------------


def answer(body: bytes = b"", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


FINE = answer()
BROKEN = answer(status="500 Internal Server Error")


@asynccontextmanager
async def listening(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on loopback; gives its port. Its connections end with the block at the latest."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError, OSError, EOFError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)


class Agent:
    """Answers HTTP as it is told, and remembers who came."""

    def __init__(self) -> None:
        self.port = 0
        self.says = FINE
        """The answer once ``script`` is used up."""
        self.script: list[bytes] = []
        """Answers to the next requests, one each."""
        self.connections = 0
        self.requests: list[str] = []
        """First lines."""
        self.open = asyncio.Event()
        """Cleared, it keeps requests waiting."""
        self.open.set()

    def endpoint(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.decode().partition("\r\n")[0])
        await self.open.wait()
        writer.write(self.script.pop(0) if self.script else self.says)
        await writer.drain()

    async def asked(self, times: int) -> None:
        """Waits until so many requests have come."""

        async def enough() -> bool:
            return len(self.requests) >= times

        await eventually(enough, f"the agent is asked {times} times")


@asynccontextmanager
async def agents(count: int) -> AsyncIterator[list[Agent]]:
    async with AsyncExitStack() as stack:
        made = [Agent() for _ in range(count)]
        for each in made:
            each.port = await stack.enter_async_context(listening(each.serve))
        yield made


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with agents(1) as [made]:
        yield made


@asynccontextmanager
async def probing_with(redis: RedisProcess, **health_check: Any) -> AsyncIterator[Server]:
    """A server that probes, and knows already that all services are its own."""
    async with running(redis.url, health_check=health_check) as served:

        async def shared_out() -> bool:
            return served.parts.monitor._membership.owns("any")

        await eventually(shared_out, "services are shared out")
        yield served


@pytest.fixture
async def probing(redis: RedisProcess) -> AsyncIterator[Server]:
    """A server that probes each service once by itself, and then on demand."""
    async with probing_with(redis, **ON_DEMAND) as served:
        yield served


# --- calls --------------------------------------------------------------------------------------------------------


def service(name: str, endpoint: str, check: dict[str, Any] | None = None, **fields: Any) -> Service:
    """A service with a health check given as JSON."""
    made = small_service(name, endpoint=endpoint, **fields)
    if check is not None:
        ParseDict(check, made.health_check)
    return made


async def check(server: Server, name: str = "a") -> Health:
    return (await server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))).health


async def settled(server: Server, *names: str) -> None:
    """Waits for the first probe that each service gets by itself."""

    async def probed(name: str) -> bool:
        return (await health_of(server, name)).health.HasField("last_check")

    for name in names:
        await eventually(partial(probed, name), f"{name} is probed")


async def registered_and_settled(server: Server, sent: Service) -> Service:
    """Registers a service and waits for its first probe; gives it as it is then."""
    await register(server, sent)
    await settled(server, sent.name)
    return await get(server, sent.name)


async def has_status(server: Server, name: str, status: HealthStatus.ValueType) -> None:
    async def holds() -> bool:
        return (await get(server, name)).health.status == status

    await eventually(holds, f"{name} is {HealthStatus.Name(status)}")


async def gone(server: Server, name: str) -> bool:
    return name not in [each.name for each in (await discover(server)).services]


async def lease_of(server: Server, name: str) -> int:
    return (await health_of(server, name)).lease_expires_at.ToNanoseconds()


async def events_until(server: Server, watch: Watch) -> list[Event]:
    """What a watch was told of until now: a change of another service ends it."""
    last = await register(server, small_service("sentinel", health_check={"none": {}}))
    events = await watch.until(last.revision)
    assert events.pop().service.name == "sentinel"
    await unregister(server, "sentinel")
    await watch.event()
    return events


# --- what is found ------------------------------------------------------------------------------------------------


def says(*parts: bytes, before: float = 0, after: float = 0) -> Target:
    """A server that takes a request and says this; seconds to wait before and after."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(before)
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(after)

    return partial(listening, handle)


@asynccontextmanager
async def closed_port() -> AsyncIterator[int]:
    """A port that nobody listens on and nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port that does not answer: its queue of connections that wait to be accepted is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


class GrpcHealth(grpc.GenericRpcHandler):
    """``Health/Check`` that always gives one status."""

    def __init__(self, status: int) -> None:
        self._status = status

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: bytes, _context: object) -> bytes:
            return bytes((8, self._status))

        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(answer)
        return None


@asynccontextmanager
async def grpc_server(
    status: int | None = None, *, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """A gRPC server that reports a status of ``grpc.health.v1``, or does not know of it."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if status is not None:
        server.add_generic_rpc_handlers([GrpcHealth(status)])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@pytest.fixture
def self_signed(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl, which is not installed")
    certificate, key = tmp_path / "self-signed.pem", tmp_path / "self-signed.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


class Row(NamedTuple):
    """An endpoint and what a check of it must say."""

    name: str
    scheme: str
    target: Target
    status: HealthStatus.ValueType
    error: str = ""
    details: dict[str, Any] | None = None
    check: dict[str, Any] | None = None


SOON = {"timeout": "0.200s"}
TABLE = [
    Row("200", "http", says(answer(b"fine")), HEALTHY),
    Row("204", "http", says(answer(status="204 No Content")), HEALTHY),
    Row("301", "http", says(answer(status="301 Moved", headers="Location: /new\r\n")), UNHEALTHY, "HTTP 301"),
    Row("404", "http", says(answer(status="404 Not Found")), UNHEALTHY, "HTTP 404"),
    Row("500", "http", says(BROKEN), UNHEALTHY, "HTTP 500"),
    Row("500-json", "http", says(answer(b'{"db":"down"}', "500 Oops")), UNHEALTHY, "HTTP 500", {"db": "down"}),
    Row("slow", "http", says(FINE, before=0.06), DEGRADED, "slower than 30 ms", None, {"degradedAfter": "0.030s"}),
    Row("hanging", "http", says(after=60), UNHEALTHY, HANGS, None, SOON),
    Row(
        "closing-mid-body",
        "http",
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
        UNHEALTHY,
        "closed the connection before the answer was complete",
    ),
    Row("garbage", "http", says(b"\x00\x01\x02\xff\r\n\r\n"), UNHEALTHY, "not an HTTP answer"),
    Row("10-MB", "http", says(answer(b"x" * 10_000_000)), HEALTHY),
    Row("json", "http", says(answer(b'{"status":"ok","load":0.5}')), HEALTHY, "", {"status": "ok", "load": 0.5}),
    Row(
        "json-degraded",
        "http",
        says(answer(b'{"status":"degraded","queue":900}')),
        DEGRADED,
        "the service reports that it is degraded",
        {"status": "degraded", "queue": 900},
    ),
    Row("http-closed", "http", closed_port, UNHEALTHY, "connection refused"),
    Row("http-blackholed", "http", black_hole, UNHEALTHY, HANGS, None, SOON),
    Row("grpc-serving", "grpc", partial(grpc_server, 1), HEALTHY),
    Row("grpc-not-serving", "grpc", partial(grpc_server, 2), UNHEALTHY, "the service reports NOT_SERVING"),
    Row("grpc-unimplemented", "grpc", grpc_server, UNHEALTHY, "the server does not offer grpc.health.v1"),
    Row("grpc-closed", "grpc", closed_port, UNHEALTHY, "connection refused"),
    Row("tcp-open", "tcp", says(after=60), HEALTHY),
    Row("tcp-closed", "tcp", closed_port, UNHEALTHY, "connection refused"),
    Row("tcp-blackholed", "tcp", black_hole, UNHEALTHY, HANGS, None, SOON),
    Row("ws-open", "ws", says(after=60), HEALTHY),
]

Found = dict[str, tuple[str, str, dict[str, Any] | None]]


async def found_at(server: Server, rows: Iterable[Row]) -> Found:
    """What a check finds at each endpoint; it must then be what everyone reads."""
    async with AsyncExitStack() as stack:
        names = []
        for row in rows:
            port = await stack.enter_async_context(row.target())
            await register(server, service(row.name, f"{row.scheme}://127.0.0.1:{port}", row.check))
            names.append(row.name)
        await settled(server, *names)
        found: Found = {}
        for name in names:
            health = await check(server, name)
            assert (await health_of(server, name)).health == health, name
            assert (await get(server, name)).health.status == health.status, name
            assert health.last_check.ToNanoseconds() > 0
            assert health.HasField("response_time"), name
            details = MessageToDict(health.details) if health.HasField("details") else None
            found[name] = (HealthStatus.Name(health.status), health.error, details)
        return found


def expected_of(rows: Iterable[Row]) -> Found:
    return {row.name: (HealthStatus.Name(row.status), row.error, row.details) for row in rows}


async def test_each_kind_of_endpoint_has_its_status_and_its_plain_error(probing: Server) -> None:
    assert await found_at(probing, TABLE) == expected_of(TABLE)


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    probing: Server, self_signed: tuple[Path, Path]
) -> None:
    certificate, key = self_signed
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    untrusted = "TLS: certificate is not trusted (self-signed certificate)"
    rows = [
        Row("https", "https", partial(listening, Agent().serve, tls=context), UNHEALTHY, untrusted),
        Row("grpcs", "grpcs", partial(grpc_server, 1, credentials=credentials), UNHEALTHY, untrusted),
    ]
    assert await found_at(probing, rows) == expected_of(rows)


async def test_how_long_a_check_took_is_told(probing: Server) -> None:
    async with says(FINE, before=0.1)() as port:
        await register(probing, service("a", f"http://127.0.0.1:{port}"))
        assert (await check(probing)).response_time.ToMilliseconds() >= 95


@pytest.mark.parametrize(
    ("path", "probe", "requested"),
    [
        ("", None, "GET /health"),
        ("/", None, "GET /health"),
        ("/agents/7", None, "GET /agents/7/health"),
        ("/agents/7/", None, "GET /agents/7/health"),
        ("/agents/7/", {"path": "/ready?deep=1"}, "GET /agents/7/ready?deep=1"),
        ("", {"path": "/", "method": "HEAD"}, "HEAD /"),
    ],
)
async def test_the_path_of_the_check_is_joined_to_the_endpoint(
    probing: Server, agent: Agent, path: str, probe: dict[str, Any] | None, requested: str
) -> None:
    await register(probing, service("a", agent.endpoint(path), None if probe is None else {"http": probe}))
    assert (await check(probing)).status == HEALTHY
    assert set(agent.requests) == {requested + " HTTP/1.1"}


# --- thresholds ---------------------------------------------------------------------------------------------------

ANSWERS = {"o": FINE, "x": BROKEN, "d": answer(b'{"status":"degraded"}')}
STATUSES = {"H": HEALTHY, "U": UNHEALTHY, "D": DEGRADED, "?": UNKNOWN, "M": MAINTENANCE}


async def checks(server: Server, agent: Agent, answers: str) -> str:
    """Checks as often as there are answers; gives the statuses that came of them."""
    told = ""
    for each in answers:
        agent.says = ANSWERS[each]
        came = len(agent.requests)
        status = (await check(server)).status
        assert len(agent.requests) == came + 1
        assert (await health_of(server, "a")).health.status == status
        told += next(letter for letter, value in STATUSES.items() if value == status)
    return told


@pytest.mark.parametrize(
    ("answers", "statuses"),
    [
        pytest.param("xxoxxoxxo", "HHHHHHHHH", id="flapping below the threshold"),
        pytest.param("xxxx", "HHUU", id="unhealthy after exactly three failures"),
        pytest.param("xxxoxoxoo", "HHUUUUUUH", id="healthy after exactly two successes"),
        pytest.param("ddodddd", "HHHHHDD", id="degraded after three slow answers"),
        pytest.param("dddoo", "HHDDH", id="no longer degraded after two"),
        pytest.param("xxxdd", "HHUUD", id="up again, but degraded"),
    ],
)
async def test_a_status_changes_after_exactly_as_many_results_and_only_changes_are_events(
    probing: Server, agent: Agent, answers: str, statuses: str
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    async with watching(probing) as watch:
        assert await checks(probing, agent, answers) == statuses
        events = await events_until(probing, watch)

    transitions = [(a, b) for a, b in zip("H" + statuses, statuses, strict=False) if a != b]
    assert [(event.previous_health, event.service.health.status) for event in events] == [
        (STATUSES[before], STATUSES[after]) for before, after in transitions
    ]
    for event in events:
        assert (event.type, event.reason) == (HEALTH_CHANGED, EventReason.EVENT_REASON_HEALTH_CHECK)
        assert event.service.health.status_changed_at == event.service.health.last_check


@pytest.mark.parametrize(("first", "status"), [("o", HEALTHY), ("x", UNHEALTHY), ("d", DEGRADED)])
async def test_the_first_result_decides(
    probing: Server, agent: Agent, first: str, status: HealthStatus.ValueType
) -> None:
    agent.says = ANSWERS[first]
    async with watching(probing) as watch:
        await register(probing, service("a", agent.endpoint()))
        registered, changed = await watch.event(), await watch.event()

    assert (registered.type, registered.service.health.status) == (REGISTERED, UNKNOWN)
    assert (changed.type, changed.reason) == (HEALTH_CHANGED, EventReason.EVENT_REASON_HEALTH_CHECK)
    assert (changed.previous_health, changed.service.health.status) == (UNKNOWN, status)
    assert len(agent.requests) == 1


async def test_of_scheduled_checks_too_it_takes_exactly_as_many(redis: RedisProcess, agent: Agent) -> None:
    agent.script = [ANSWERS[each] for each in "oxoxxoxoo"]
    every_second = {"interval": "1s", "timeout": "1s", "failureThreshold": 2, "successThreshold": 2}
    async with probing_with(redis, **ON_DEMAND) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), every_second))
        statuses, came = [], []
        for _ in range(4):
            statuses.append((await watch.event()).service.health.status)
            came.append(len(agent.requests))

    # A check more may have come before the event was read; fewer were not enough.
    assert statuses == [UNKNOWN, HEALTHY, UNHEALTHY, HEALTHY]
    for count, least in zip(came[1:], (1, 5, 9), strict=True):
        assert least <= count <= least + 1


async def test_every_check_is_read_through_another_process_and_takes_no_revision(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    known = await registered_and_settled(probing, service("a", agent.endpoint()))
    async with running(redis.url) as other:
        assert (await get(other, "a", min_revision=known.revision)) == known
        last = known.health
        for said, error in ((BROKEN, "HTTP 500"), (FINE, ""), (answer(status="404 Gone"), "HTTP 404")):
            agent.says = said
            health = await check(probing)
            assert (await health_of(other, "a")).health == health
            assert (health.status, health.error) == (HEALTHY, error)
            assert health.last_check.ToNanoseconds() >= last.last_check.ToNanoseconds()
            assert health.response_time != last.response_time
            assert health.status_changed_at == known.health.status_changed_at
            last = health
        for server in (probing, other):
            assert await get(server, "a") == known
            told = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
            assert told.revision == known.revision


async def test_scheduled_checks_too_are_read_through_another_process(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server, running(redis.url) as other:
        await register(server, service("a", agent.endpoint(), {"failureThreshold": 100}))
        await settled(server, "a")
        known = await get(server, "a")
        seen: set[int] = set()

        async def read_five() -> bool:
            seen.add((await health_of(other, "a")).health.last_check.ToNanoseconds())
            return len(seen) >= 5

        await eventually(read_five, "five checks were read")
        assert (await get(server, "a")).revision == known.revision


# --- leases -------------------------------------------------------------------------------------------------------


async def test_a_service_that_answers_stays_registered_without_heartbeats(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("silent", agent.endpoint(), {"none": {}}, ttl={"seconds": 5}))
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        begun = await lease_of(server, "a")

        async def a_whole_lease_later() -> bool:
            return await lease_of(server, "a") > begun + 6_000_000_000

        await eventually(a_whole_lease_later, "the lease was renewed over and over")
        assert await gone(server, "silent"), "leases do end"
        assert not await gone(server, "a")


async def test_a_check_that_succeeds_renews_the_lease_and_one_that_fails_does_not(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    async with redis_client(redis) as client:
        await age_lease(client, "a", 100)
        aged = await lease_of(probing, "a")

        await checks(probing, agent, "x")
        assert await lease_of(probing, "a") == aged, "failed, without a transition"
        await checks(probing, agent, "xx")
        assert (await get(probing, "a")).health.status == UNHEALTHY
        assert await lease_of(probing, "a") == aged, "failed, with a transition"
        assert 90 < await client.ttl("ossa:services:a") <= 100

        await checks(probing, agent, "o")
        renewed = await lease_of(probing, "a")
        assert renewed > aged + 150_000_000_000, "succeeded, without a transition"
        assert await client.ttl("ossa:services:a") > 250
        await age_lease(client, "a", 100)
        await checks(probing, agent, "o")
        assert (await get(probing, "a")).health.status == HEALTHY
        assert await lease_of(probing, "a") >= renewed, "succeeded, with a transition"


async def test_the_lease_of_a_service_that_fails_its_checks_runs_out(redis: RedisProcess, agent: Agent) -> None:
    agent.says = BROKEN
    async with probing_with(redis, **OFTEN) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        events = await watch.events(2)
        events.append(await watch.event())

    assert [event.type for event in events] == [REGISTERED, HEALTH_CHANGED, UNREGISTERED]
    assert events[2].reason == EventReason.EVENT_REASON_LEASE_EXPIRED
    assert len(agent.requests) > 3


# --- what else decides --------------------------------------------------------------------------------------------


async def test_maintenance_outlasts_good_and_bad_checks_which_can_be_read_all_the_same(
    probing: Server, agent: Agent
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    await report(probing, "a", MAINTENANCE)
    known = await get(probing, "a")
    async with watching(probing) as watch:
        assert await checks(probing, agent, "oooxxxxdddo") == "M" * 11
        agent.says = BROKEN
        health = await check(probing)
        assert (health.status, health.error) == (MAINTENANCE, "HTTP 500")
        assert (await health_of(probing, "a")).health == health
        assert await events_until(probing, watch) == []
    assert await get(probing, "a") == known

    await report(probing, "a", UNKNOWN)
    assert await checks(probing, agent, "o") == "H", "once it is lifted, checks decide again"


async def test_a_reported_status_is_undone_by_as_many_checks_as_any_other(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    assert await checks(probing, agent, "ooo") == "HHH"
    await report(probing, "a", UNHEALTHY, error="out of quota")
    assert await checks(probing, agent, "oo") == "UH"

    assert await checks(probing, agent, "xxxxx") == "HHUUU"
    await report(probing, "a", HEALTHY)
    assert await checks(probing, agent, "xxx") == "HHU"

    await report(probing, "a", DEGRADED)
    assert await checks(probing, agent, "oo") == "DH"


async def test_another_endpoint_starts_over_and_is_what_is_probed_from_then_on(redis: RedisProcess) -> None:
    async with agents(2) as [old, new], probing_with(redis, **OFTEN) as server:
        new.says = BROKEN
        await register(server, service("a", old.endpoint()))
        await has_status(server, "a", HEALTHY)
        async with watching(server, types=[HEALTH_CHANGED, UPDATED]) as watch:
            moved = await register(server, service("a", new.endpoint()))
            assert moved.health.status == UNKNOWN
            assert not moved.health.HasField("last_check")
            moving, failing = await watch.event(), await watch.event()
        assert (moving.type, moving.service.health.status) == (UPDATED, UNKNOWN)
        assert (failing.previous_health, failing.service.health.status) == (UNKNOWN, UNHEALTHY)

        await new.asked(1)
        asked = len(old.requests)
        await new.asked(6)
        assert len(old.requests) == asked


async def test_a_changed_check_is_used_at_once(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    assert agent.requests == ["GET /health HTTP/1.1"]
    changed = service("a", agent.endpoint(), {"http": {"path": "/ready"}, "failureThreshold": 1})
    await update(probing, changed, "health_check")
    await agent.asked(2)
    assert agent.requests[1] == "GET /ready HTTP/1.1"
    assert await checks(probing, agent, "x") == "U"


async def test_registering_again_what_is_registered_changes_nothing_about_its_checks(
    probing: Server, agent: Agent
) -> None:
    sent = service("a", agent.endpoint())
    await registered_and_settled(probing, sent)
    assert await checks(probing, agent, "xx") == "HH"
    await register(probing, sent)
    assert await checks(probing, agent, "x") == "U"
    assert len(agent.requests) == 4


@pytest.mark.parametrize(("kind", "status"), [("heartbeat", HEALTHY), ("none", UNKNOWN)])
async def test_what_is_not_to_be_probed_is_never_connected_to(
    redis: RedisProcess, kind: str, status: HealthStatus.ValueType
) -> None:
    async with agents(2) as [untouched, probed], probing_with(redis, **OFTEN) as server:
        registered = await register(server, service("quiet", untouched.endpoint(), {kind: {}}))
        assert registered.health.status == status
        await register(server, service("probed", probed.endpoint()))
        await probed.asked(12)  # the first probe of all comes within a second

        assert await check(server, "quiet") == registered.health
        assert await get(server, "quiet") == registered
        assert untouched.connections == 0


async def test_a_service_that_is_no_longer_to_be_probed_is_left_alone(redis: RedisProcess) -> None:
    async with agents(2) as [agent, other], probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await agent.asked(1)
        await update(server, service("a", agent.endpoint(), {"none": {}}), "health_check")
        await register(server, service("other", other.endpoint()))
        await other.asked(1)
        asked = len(agent.requests)
        await other.asked(12)
        assert len(agent.requests) == asked


async def test_a_services_own_interval_counts(redis: RedisProcess) -> None:
    async with agents(3) as [rare, frequent, usual]:
        async with probing_with(redis, **ON_DEMAND) as server:
            await register(server, service("frequent", frequent.endpoint(), {"interval": "1s"}))
            await frequent.asked(3)
        async with probing_with(redis, **OFTEN) as server:
            await register(server, service("rare", rare.endpoint(), {"interval": "3600s", "timeout": "10s"}))
            await settled(server, "rare")
            await register(server, service("usual", usual.endpoint()))
            await usual.asked(12)
            assert len(rare.requests) == 1


async def test_a_services_own_timeout_and_thresholds_count(probing: Server, agent: Agent) -> None:
    thresholds = {"failureThreshold": 1, "successThreshold": 4, "timeout": "0.200s"}
    agent.open.clear()
    await registered_and_settled(probing, service("a", agent.endpoint(), thresholds))
    assert (await check(probing)).error == HANGS
    agent.open.set()
    await update(probing, service("a", agent.endpoint(), {**thresholds, "timeout": "10s"}), "health_check.timeout")
    await agent.asked(3)  # a changed check is made at once, and is the first success
    await eventually(partial(_is_fine, probing), "it is fine")
    assert await checks(probing, agent, "ooox") == "UUHU"


async def _is_fine(server: Server) -> bool:
    return not (await health_of(server, "a")).health.error


# --- CheckServiceHealth -------------------------------------------------------------------------------------------


async def refused_check(server: Server, name: str = "a") -> tuple[grpc.StatusCode, str]:
    refused = await failure(check(server, name))
    return refused.code, refused.reason


NOT_FOUND = grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND"
DISABLED = grpc.StatusCode.UNIMPLEMENTED, "PROBING_DISABLED"


async def test_checking_what_is_not_registered_is_not_found(probing: Server) -> None:
    assert await refused_check(probing, "nobody") == NOT_FOUND
    refused = await failure(check(probing, "?"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


async def test_probing_can_be_off_ended_and_begun(redis: RedisProcess, agent: Agent) -> None:
    async with running(redis.url, health_check={**OFTEN, "enabled": False}) as server:
        await register(server, service("a", agent.endpoint()))
        registry = server.parts.registry
        assert await refused_check(server) == DISABLED
        assert await refused_check(server, "nobody") == NOT_FOUND
        assert agent.connections == 0

        for _ in range(2):
            await registry.start_health_monitoring()
            await registry.start_health_monitoring()
            assert (await check(server)).status == HEALTHY
            asked = len(agent.requests)
            await agent.asked(asked + 3)

            await registry.stop_health_monitoring()
            await registry.stop_health_monitoring()
            assert await refused_check(server) == DISABLED
        assert (await health_of(server, "a")).health.status == HEALTHY


async def test_a_check_under_way_when_probing_ends_is_refused(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    agent.open.clear()
    checking = asyncio.create_task(refused_check(probing))
    await agent.asked(2)
    await probing.parts.registry.stop_health_monitoring()
    assert await checking == DISABLED


async def test_a_check_that_comes_while_probing_ends_is_refused(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    redis.pause()  # the end takes a while: the list of processes does not answer
    stopping = asyncio.create_task(probing.parts.registry.stop_health_monitoring())
    await asyncio.sleep(0)
    try:
        assert await refused_check(probing) == DISABLED
    finally:
        redis.resume()
        await stopping


async def test_probing_that_is_begun_again_while_it_ends_goes_on(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await agent.asked(1)
        registry = server.parts.registry
        stopping = asyncio.create_task(registry.stop_health_monitoring())
        await asyncio.sleep(0)
        await registry.start_health_monitoring()
        await stopping

        assert (await check(server)).status == HEALTHY
        asked = len(agent.requests)
        await agent.asked(asked + 3)


async def test_many_who_ask_at_once_make_one_connection_and_get_one_answer(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    agent.open.clear()
    asking = [asyncio.create_task(probing.parts.registry.check_health("a")) for _ in range(50)]
    await agent.asked(2)
    asking += [asyncio.create_task(probing.parts.registry.check_health("a")) for _ in range(50)]
    await asyncio.sleep(0)
    agent.open.set()
    answers = await asyncio.gather(*asking)
    assert agent.connections == 2
    assert all(each == answers[0] for each in answers)
    assert (await check(probing)).last_check.ToNanoseconds() >= answers[0].last_check.ToNanoseconds()
    assert agent.connections == 3


async def test_whoever_asks_and_leaves_takes_the_answer_from_nobody(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    agent.open.clear()
    leaving, staying = asyncio.create_task(check(probing)), asyncio.create_task(check(probing))
    await agent.asked(2)
    leaving.cancel()
    agent.open.set()
    assert (await staying).status == HEALTHY


async def test_a_check_of_a_service_that_goes_meanwhile_is_not_found(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    agent.open.clear()
    checking = asyncio.create_task(refused_check(probing))
    await agent.asked(2)
    await unregister(probing, "a")
    agent.open.set()
    assert await checking == NOT_FOUND


async def test_a_check_of_a_service_that_has_moved_is_of_the_endpoint_that_it_has_now(probing: Server) -> None:
    async with agents(2) as [old, new]:
        old.says = BROKEN
        await registered_and_settled(probing, service("a", old.endpoint(), {"timeout": "60s"}))
        old.open.clear()
        before = asyncio.create_task(check(probing))
        await old.asked(2)
        await register(probing, service("a", new.endpoint(), {"timeout": "60s"}))
        async with asyncio.timeout(PATIENCE):
            assert (await check(probing)).status == HEALTHY
        old.open.set()
        assert (await before).error == "", "what the old endpoint says is of nobody"


async def test_checks_of_many_services_at_once_are_all_made(probing: Server, agent: Agent) -> None:
    names = [f"s{i}" for i in range(150)]
    for name in names:
        await register(probing, service(name, agent.endpoint()))
    healths = await asyncio.gather(*(check(probing, name) for name in names))
    assert {health.status for health in healths} == {HEALTHY}


async def test_without_the_store_a_check_is_answered_and_changes_no_status(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    known = await registered_and_settled(probing, service("a", agent.endpoint()))
    await checks(probing, agent, "xx")

    async def connected(expected: bool) -> bool:  # noqa: FBT001
        told = await probing.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        return told.store_connected is expected

    redis.kill()
    await eventually(partial(connected, False), "the store is away")  # noqa: FBT003
    for _ in range(4):
        health = await check(probing)
        assert (health.status, health.error) == (HEALTHY, "HTTP 500")
    assert await get(probing, "a") == known

    await redis.restart()
    await eventually(partial(connected, True), "the store is back")  # noqa: FBT003
    assert await get(probing, "a") == known
    assert await checks(probing, agent, "xxx") == "HHU", "failures of before the outage and within it do not count"


# --- what may not be reached --------------------------------------------------------------------------------------

DENIED = [
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.0.7:8080",
    "https://[fe80::1]:8443",
    "http://[::ffff:169.254.169.254]",
    "grpc://[fd00:ec2::254]:443",
    "tcp://100.100.100.200:80",
    "http://0.0.0.0:80",
    "ws://[::]:80",
]


@pytest.mark.parametrize("endpoint", DENIED)
async def test_a_literal_endpoint_that_may_not_be_reached_is_refused(server: Server, endpoint: str) -> None:
    refused = await failure(register(server, small_service("a", endpoint=endpoint)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert "is not allowed by the settings of this registry" in refused.message

    known = await register(server, small_service("a"))
    refused = await failure(update(server, small_service("a", endpoint=endpoint), "endpoint"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert await get(server, "a") == known


async def test_whatever_else_is_wrong_is_told_beside_a_denied_endpoint(server: Server) -> None:
    bad = small_service("-", version="", endpoint=DENIED[0], metadata={"tags": [""]})
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {"service.name", "service.version", "service.endpoint"} < set(refused.fields)
    assert len(set(refused.fields)) == len(refused.fields)

    await register(server, small_service("a"))
    bad = small_service("a", version="", endpoint=DENIED[0])
    refused = await failure(update(server, bad, "version", "endpoint"))
    assert sorted(refused.fields) == ["service.endpoint", "service.version"]


async def test_in_a_batch_a_denied_endpoint_is_named_by_its_place_and_costs_the_others_nothing(server: Server) -> None:
    batch = [small_service("a"), small_service("b", endpoint=DENIED[0], version=""), small_service("c")]
    results = (await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=batch))).results
    assert [result.service.name for result in results] == ["a", "", "c"]
    refused = failure_in(results[1].status)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == ["services[1].endpoint", "services[1].version"]
    assert [each.name for each in (await discover(server)).services] == ["a", "c"]


@pytest.mark.parametrize(
    ("networks", "taken", "refused"),
    [
        pytest.param(
            {"denied_networks": "10.0.0.0/8, 192.168.0.0/16"},
            ["http://127.0.0.1:80", "http://11.0.0.1", "http://169.254.169.254"],
            ["http://10.1.2.3", "tcp://192.168.7.7:1", "http://[::ffff:10.1.2.3]"],
            id="denied networks are those of the setting alone",
        ),
        pytest.param(
            {"allowed_networks": "127.0.0.0/8,10.0.0.0/8"},
            ["http://127.0.0.1:80", "http://10.1.2.3", "http://by-name.test"],
            ["http://11.0.0.1", "http://[::1]:80", "http://169.254.169.254"],
            id="nothing but the allowed networks",
        ),
        pytest.param(
            {"allowed_networks": "10.0.0.0/8", "denied_networks": "10.9.0.0/16"},
            ["http://10.1.2.3"],
            ["http://10.9.1.1", "http://127.0.0.1:80"],
            id="denied counts before allowed",
        ),
    ],
)
async def test_the_networks_of_the_settings_count(
    redis: RedisProcess, networks: dict[str, str], taken: Sequence[str], refused: Sequence[str]
) -> None:
    async with running(redis.url, health_check={"enabled": False, **networks}) as server:
        for i, endpoint in enumerate(taken):
            await register(server, small_service(f"s{i}", endpoint=endpoint))
        for endpoint in refused:
            told = await failure(register(server, small_service("refused", endpoint=endpoint)))
            assert told.fields == ["service.endpoint"], endpoint


async def test_what_was_registered_before_it_was_denied_can_still_be_changed_but_is_not_connected_to(
    redis: RedisProcess, agent: Agent
) -> None:
    async with running(redis.url) as before:
        await register(before, service("a", agent.endpoint()))
    async with running(redis.url, health_check={**ON_DEMAND, "denied_networks": "127.0.0.0/8"}) as server:
        health = await check(server)
        assert (health.status, health.error) == (UNHEALTHY, "address 127.0.0.1 is not allowed")
        changed = await update(server, service("a", agent.endpoint(), version="2.0.0"), "version")
        assert changed.version == "2.0.0"
        assert agent.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp", "ws"])
async def test_a_name_that_leads_to_a_denied_address_fails_its_check_and_is_not_connected_to(
    redis: RedisProcess, agent: Agent, scheme: str
) -> None:
    denied = {**ON_DEMAND, "denied_networks": "127.0.0.0/8,::1/128"}
    async with probing_with(redis, **denied) as server:
        await register(server, service("a", f"{scheme}://localhost:{agent.port}"))
        health = await check(server)
        assert (health.status, health.error) == (UNHEALTHY, "host name has no address that is allowed")
        assert (await health_of(server, "a")).health.error == health.error
    assert agent.connections == 0


@pytest.mark.parametrize("location", ["agent", "http://169.254.169.254/latest/meta-data", "/elsewhere"])
async def test_a_redirect_is_not_followed(probing: Server, location: str) -> None:
    async with agents(2) as [redirecting, elsewhere]:
        target = elsewhere.endpoint("/health") if location == "agent" else location
        redirecting.says = answer(status="302 Found", headers=f"Location: {target}\r\n")
        await registered_and_settled(probing, service("a", redirecting.endpoint()))
        health = await check(probing)
        assert (health.status, health.error) == (UNHEALTHY, "HTTP 302")
        assert redirecting.requests == ["GET /health HTTP/1.1"] * 2
        assert elsewhere.connections == 0

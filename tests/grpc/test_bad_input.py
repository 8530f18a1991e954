"""Every invalid request is refused quickly, with the error that the contract specifies, and changes nothing."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc.aio import Metadata
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from tests.grpc.bad_inputs import BENIGN, EMPTY, INVALID, OK, STOCK, STOCK_FILTER, STOCKED, IssuedTokens, Row
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
MAX_ANSWER_SECONDS = 5.0
"""Time limit for any answer: a thousand times the usual duration."""
MAX_TRAILER_BYTES = 8192
"""Default limit of gRPC clients, counted as in RFC 9113, section 6.5.2."""

NO_PROBES = {"enabled": False}
"""A probe would change data that must stay the same."""

_M = TypeVar("_M", bound=Message)


@dataclass
class Outcome:
    """The result of one row."""

    code: grpc.StatusCode
    message: str
    status: Status | None
    """``grpc-status-details-bin``."""
    trailer_bytes: int
    seconds: float
    revision: int
    """Revision of the registry after the request."""


@dataclass
class Results:
    """The results of all rows, and the state of the two registries before and after them."""

    outcomes: dict[str, Outcome]
    empty_keys: set[str]
    """Redis keys of the registry without services."""
    stock_before: Mapping[str, bytes]
    stock_after: Mapping[str, bytes]
    """Serialised Redis keys of the registry with services, without the time of the newest sweep."""
    serving: list[bool]
    names_after: list[list[str]]
    """Names in each registry after one more valid registration."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results of all rows, sent in order to a server without services and to one with services."""
    # Finished before any other test starts: grpc.aio loses events of a loop that is idle while another one runs.
    return asyncio.run(send_all_rows(tmp_path_factory.mktemp("redis")))


@pytest.mark.parametrize(
    ("row", "revision"),
    [
        *(pytest.param(row, 0, id=row.id) for row in EMPTY),
        *(pytest.param(row, len(STOCK), id=row.id) for row in STOCKED),
    ],
)
def test_invalid_request_is_refused_with_all_bad_fields(results: Results, row: Row, revision: int) -> None:
    outcome = results.outcomes[row.id]

    assert outcome.code == row.code, outcome.message
    if row.reason is not None:
        assert outcome.status is not None
        assert (outcome.status.code, outcome.status.message) == (outcome.code.value[0], outcome.message)
        assert [(info.domain, info.reason) for info in details(outcome.status, ErrorInfo)] == [
            ("registry.ossa", row.reason)
        ]
        assert len(details(outcome.status, BadRequest)) == (row.code is INVALID)
        assert bad_fields(outcome.status) == row.fields
    assert outcome.trailer_bytes <= MAX_TRAILER_BYTES
    assert outcome.revision == revision
    assert outcome.seconds < MAX_ANSWER_SECONDS


@pytest.mark.parametrize("row", BENIGN, ids=lambda row: row.id)
def test_unusual_but_valid_request_is_answered_quickly(results: Results, row: Row) -> None:
    outcome = results.outcomes[row.id]
    assert outcome.code == OK, outcome.message
    assert outcome.revision == len(STOCK)
    assert outcome.seconds < MAX_ANSWER_SECONDS


def test_no_request_causes_an_internal_error(results: Results) -> None:
    internal = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    assert [id_ for id_, outcome in results.outcomes.items() if outcome.code in internal] == []


def test_invalid_requests_store_nothing_in_an_empty_registry(results: Results) -> None:
    assert results.empty_keys <= {f"ossa:registry:{key}" for key in ("epoch", "format", "secret", "sweep")}


def test_invalid_requests_change_nothing_in_a_registry_with_services(results: Results) -> None:
    assert results.stock_after == results.stock_before


def test_servers_still_serve_after_all_invalid_requests(results: Results) -> None:
    assert results.serving == [True, True]
    assert results.names_after == [["one-more"], sorted([*(service.name for service in STOCK), "one-more"])]


async def test_each_bad_service_of_a_batch_is_refused_separately(server: Server) -> None:
    good, nothing = small_service("good"), Service()
    bad = small_service("bad", endpoint="file://h", capabilities=[{"name": "a"}, {"name": "-"}])
    large = small_service("large", metadata={"documentation": "a" * 140_000})

    answer = await server.stub.BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=[good, nothing, bad, large])
    )

    assert [result.WhichOneof("result") for result in answer.results] == ["service", "status", "status", "status"]
    statuses = [result.status for result in answer.results][1:]
    assert {status.code for status in statuses} == {INVALID.value[0]}
    assert [bad_fields(status) for status in statuses] == [
        {"services[1].name", "services[1].endpoint", "services[1].version"},
        {"services[2].endpoint", "services[2].capabilities[1].name"},
        {"services[3]", "services[3].metadata.documentation"},
    ]
    assert [(info.domain, info.reason) for status in statuses for info in details(status, ErrorInfo)] == [
        ("registry.ossa", "INVALID_REQUEST")
    ] * 3
    assert await revision(server) == 1


async def test_invalid_message_ends_a_stream_after_earlier_answers(server: Server) -> None:
    requests = [pb.KeepAliveRequest(names=["a", "b"]), pb.KeepAliveRequest(names=["c"]), pb.KeepAliveRequest()]
    answers = aiter(server.stub.KeepAlive(iter([*requests, *requests])))

    assert [list((await anext(answers)).unknown_names) for _ in range(2)] == [["a", "b"], ["c"]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(answers)
    assert caught.value.code() is INVALID


async def send_all_rows(directory: Path) -> Results:
    async with (
        RedisProcess(directory) as redis,
        running(redis.url, redis={"key_prefix": "ossa:services"}, health_check=NO_PROBES) as empty,
        running(redis.url, redis={"key_prefix": "stock:services"}, health_check=NO_PROBES) as stocked,
        Redis.from_url(redis.url) as client,
    ):
        for service in STOCK:
            await stocked.stub.RegisterService(pb.RegisterServiceRequest(service=service))
        tokens = await collect_tokens(stocked, empty)
        before = await keys(client, "stock:*")

        outcomes = {row.id: await send_row(empty, row, tokens) for row in EMPTY}
        outcomes |= {row.id: await send_row(stocked, row, tokens) for row in (*STOCKED, *BENIGN)}

        return Results(
            outcomes,
            set(await keys(client, "ossa:*")),
            before,
            await keys(client, "stock:*"),
            [await is_serving(server) for server in (empty, stocked)],
            [await register_and_list_names(server) for server in (empty, stocked)],
        )


async def collect_tokens(stocked: Server, empty: Server) -> IssuedTokens:
    """Collect page tokens and cursors that clients of these registries may hold."""
    page = pb.DiscoverServicesRequest(filter=STOCK_FILTER, page_size=1)
    capabilities = pb.ListCapabilitiesRequest(page_size=1)
    snapshot = [message async for message in read_snapshot(stocked)]
    return IssuedTokens(
        page_token=(await stocked.stub.DiscoverServices(page)).next_page_token,
        capabilities_token=(await stocked.stub.ListCapabilities(capabilities)).next_page_token,
        cursor=snapshot[-1].cursor,
        snapshot_cursor=snapshot[0].cursor,
        foreign_cursor=[message.cursor async for message in read_snapshot(empty)][-1],
    )


async def read_snapshot(server: Server) -> AsyncIterator[pb.WatchEventsResponse]:
    """Yield the messages of a watch up to the end of its snapshot."""
    call = server.stub.WatchEvents(pb.WatchEventsRequest(include_snapshot=True))
    async for message in call:
        yield message
        if message.snapshot_complete:
            call.cancel()
            return


async def send_row(server: Server, row: Row, tokens: IssuedTokens) -> Outcome:
    """Send the request of one row and return the result."""
    request = row.request(tokens) if callable(row.request) else row.request
    wire = request.SerializeToString() if isinstance(request, Message) else request
    path = f"/{SERVICE}/{row.rpc}"
    channel: Any = server.channel  # typed for messages, not for bytes
    started = time.perf_counter()
    code, message, trailers = OK, "", Metadata()
    try:
        match row.rpc:
            case "KeepAlive":
                async for _ in channel.stream_stream(path)(iter([wire]), timeout=row.timeout):
                    pass
            case "WatchEvents":
                async for _ in channel.unary_stream(path)(wire, timeout=row.timeout):
                    break
            case _:
                await channel.unary_unary(path)(wire, timeout=row.timeout)
    except grpc.aio.AioRpcError as error:
        code, message, trailers = error.code(), error.details() or "", error.trailing_metadata()
    elapsed = time.perf_counter() - started
    packed = dict(trailers).get("grpc-status-details-bin")
    status = Status.FromString(packed) if isinstance(packed, bytes) else None
    return Outcome(code, message, status, size_of(message, trailers), elapsed, await revision(server))


def size_of(message: str, trailers: Metadata) -> int:
    """Return the size of the trailers, with the overhead that HTTP/2 counts for each field."""
    fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "99")]
    fields += [("grpc-message", quote(message)), *((key, text_of(value)) for key, value in trailers)]
    return sum(len(key) + len(value) + 32 for key, value in fields)


def text_of(value: str | bytes) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def details(status: Status, kind: type[_M]) -> list[_M]:
    """Return the details of one type in a status."""
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def bad_fields(status: Status) -> set[str]:
    return {violation.field for bad in details(status, BadRequest) for violation in bad.field_violations}


async def revision(server: Server) -> int:
    return (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision


async def keys(client: Redis, pattern: str) -> dict[str, bytes]:
    """Return the serialised values of all keys that match a pattern."""
    found = [key async for key in client.scan_iter(pattern, count=1000) if not key.endswith(b":sweep")]
    return {key.decode(): await client.dump(key) or b"" for key in found}


async def is_serving(server: Server) -> bool:
    stub: Any = HealthStub(server.channel)  # its stubs are not typed
    health = await stub.Check(HealthCheckRequest(service=SERVICE))
    return bool(health.status == HealthCheckResponse.SERVING)


async def register_and_list_names(server: Server) -> list[str]:
    await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("one-more")))
    found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest(filter=ServiceFilter(version="1.0.0")))
    return [service.name for service in found.services]

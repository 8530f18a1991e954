"""Tables of server behaviours and the expected outcomes of probes."""

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckResponse

from registry_server.probes import OutcomeKind
from tests.support.endpoints import (
    GrpcAnswers,
    Handler,
    Target,
    answer,
    grpc_server,
    listening,
    reports,
    request,
    respond,
)
from tests.unit.probes.probing import DEGRADED, FAILED, OK, SHORT_TIMEOUT, TIMED_OUT, Check


async def closes(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request(reader)


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# HTTP.


class Http(NamedTuple):
    """One row: a server, the configuration of the check and the expected outcome."""

    name: str
    server: Handler
    kind: OutcomeKind
    error: str = ""
    details: Mapping[str, Any] | None = None
    check: Check = {}  # noqa: RUF012 - never modified


CUT_SHORT = "closed the connection before the answer was complete"
NOT_HTTP = "not an HTTP answer"
TOO_LARGE = "the header of the answer is too large"
NESTED = b'{"a":' * 33 + b"1" + b"}" * 33
HTTP = [
    Http("200", respond(answer(b"fine")), OK),
    Http("204", respond(answer(status="204 No Content")), OK),
    Http("299", respond(answer(status="299 Odd")), OK),
    Http("301", respond(answer(status="301 Moved", headers="Location: /elsewhere\r\n")), FAILED, "HTTP 301"),
    Http("404", respond(answer(status="404 Not Found")), FAILED, "HTTP 404"),
    Http("500", respond(answer(status="500 Internal Server Error")), FAILED, "HTTP 500"),
    Http("500 with details", respond(answer(b'{"db":"down"}', "500 Oops")), FAILED, "HTTP 500", {"db": "down"}),
    Http("500 with half a body", respond(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n{"), FAILED, "HTTP 500"),
    Http(
        "500 with a body that never ends",
        respond(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n{", after=9),
        FAILED,
        "HTTP 500",
        check={"timeout": "0.400s"},  # the status must arrive in time, on a busy machine too
    ),
    Http("an interim response first", respond(b"HTTP/1.1 100 Continue\r\n\r\n", answer(b"fine")), OK),
    Http("a body up to the end of the connection", respond(b'HTTP/1.0 200 OK\r\n\r\n{"a":true}'), OK, "", {"a": True}),
    Http(
        "a body in chunks",
        respond(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n', b'6\r\n":"b"}\r\n0\r\n\r\n'),
        OK,
        "",
        {"a": "b"},
    ),
    # Expectations
    Http("503 expected", respond(answer(status="503 Busy")), OK, check={"http": {"expectedStatuses": [503]}}),
    Http("200 not expected", respond(answer()), FAILED, "HTTP 200", check={"http": {"expectedStatuses": [204, 301]}}),
    Http(
        "301 expected",
        respond(answer(status="301 Moved", headers="Location: http://127.0.0.1:1/\r\n")),
        OK,
        check={"http": {"expectedStatuses": [204, 301]}},
    ),
    Http(
        "101 expected",
        respond(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n", after=9),
        OK,
        check={"http": {"expectedStatuses": [101]}},
    ),
    Http(
        "HEAD",
        respond(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", after=9),
        OK,
        check={"http": {"method": "HEAD"}},
    ),
    # Slow answers
    Http("slow", respond(answer(), before=0.06), DEGRADED, "slower than 30 ms", check={"degradedAfter": "0.030s"}),
    Http("not slow", respond(answer()), OK, check={"degradedAfter": "5s"}),
    Http(
        "slow and failing",
        respond(answer(status="500 Oops"), before=0.06),
        FAILED,
        "HTTP 500",
        check={"degradedAfter": "0.030s"},
    ),
    Http("silent", respond(after=9), FAILED, TIMED_OUT, check={"timeout": SHORT_TIMEOUT}),
    Http(
        "silent in the header",
        respond(b"HTTP/1.1 200 OK\r\n", after=9),
        FAILED,
        TIMED_OUT,
        check={"timeout": SHORT_TIMEOUT},
    ),
    Http(
        "silent in the body",
        respond(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", after=9),
        FAILED,
        TIMED_OUT,
        check={"timeout": SHORT_TIMEOUT},
    ),
    # Broken connections
    Http("closes", closes, FAILED, "closed the connection without an answer"),
    Http("resets", resets, FAILED, "connection reset"),
    Http("closes in the status line", respond(b"HTTP/1.1 2"), FAILED, CUT_SHORT),
    Http("closes in the header", respond(b"HTTP/1.1 200 OK\r\nContent-Le"), FAILED, CUT_SHORT),
    Http("closes in the body", respond(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), FAILED, CUT_SHORT),
    Http(
        "closes in a chunk",
        respond(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"),
        FAILED,
        CUT_SHORT,
    ),
    # Invalid responses
    Http("garbage", respond(b"\x00\x01\x02\xff\r\n\r\n"), FAILED, NOT_HTTP),
    Http("another protocol", respond(b"220 mail.test ESMTP\r\n"), FAILED, NOT_HTTP),
    Http(
        "bad chunks",
        respond(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        FAILED,
        NOT_HTTP,
    ),
    Http(
        "two lengths", respond(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), FAILED, NOT_HTTP
    ),
    Http("a header line of 20 KB", respond(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"), FAILED, TOO_LARGE),
    Http("a reason of 20 KB", respond(b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\n\r\n"), FAILED, TOO_LARGE),
    Http("100 header lines", respond(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 100 + b"\r\n"), FAILED, TOO_LARGE),
    Http("1,000 header lines", respond(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1_000 + b"\r\n"), FAILED, TOO_LARGE),
    # Details
    Http(
        "JSON",
        respond(answer(b'{"status":"healthy","version":"1.0.0","queue":{"depth":3,"full":false},"tags":["a",null]}')),
        OK,
        "",
        {"status": "healthy", "version": "1.0.0", "queue": {"depth": 3, "full": False}, "tags": ["a", None]},
    ),
    Http("JSON with space around", respond(answer(b' \r\n{"a": 1}\n')), OK, "", {"a": 1}),
    Http("an empty object", respond(answer(b"{}")), OK, "", {}),
    Http(
        "JSON with status degraded",
        respond(answer(b'{"status":"Degraded","queue":900}')),
        DEGRADED,
        "the service reports that it is degraded",
        {"status": "Degraded", "queue": 900},
    ),
    Http(
        "JSON with status degraded, with details that are too deep",
        respond(answer(b'{"status":"degraded","more":' + NESTED + b"}")),
        DEGRADED,
        "the service reports that it is degraded",
    ),
    Http(
        "500 with status degraded",
        respond(answer(b'{"status":"degraded"}', "500 Oops")),
        FAILED,
        "HTTP 500",
        {"status": "degraded"},
    ),
    Http("a status that is no string", respond(answer(b'{"status":["degraded"]}')), OK, "", {"status": ["degraded"]}),
    Http("a JSON array", respond(answer(b'["degraded"]')), OK),
    Http("text", respond(answer(b"OK")), OK),
    Http("half an object", respond(answer(b'{"status":"degraded"')), OK),
    Http("two objects", respond(answer(b"{}{}")), OK),
    Http("NaN", respond(answer(b'{"a":NaN}')), OK),
    Http("Infinity", respond(answer(b'{"a":-Infinity}')), OK),
    Http("a number that is too large", respond(answer(b'{"a":1e999}')), OK),
    Http("half of a surrogate pair", respond(answer(b'{"a":"\\ud800"}')), OK),
    Http("not UTF-8", respond(answer(b'{"a":"\xff"}')), OK),
    Http("too deep", respond(answer(NESTED)), OK),
    Http("nested beyond the recursion limit of the parser", respond(answer(b'{"a":' + b"[" * 4_000)), OK),
    Http("compressed", respond(answer(b"\x1f\x8b\x08{}", headers="Content-Encoding: gzip\r\n")), OK),
    Http("4,000 bytes", respond(answer(b'{"a":"%s"}' % (b"x" * 3_992))), OK, "", {"a": "x" * 3_992}),
    Http("4,097 bytes", respond(answer(b'{"a":"%s"}' % (b"x" * 4_089))), OK),
    Http("4,000 bytes that exceed the limit as details", respond(answer(b'{"a":[%s1]}' % (b"1," * 1_900))), OK),
]


# TLS.

TLS = [
    ("good", "127.0.0.1", OK, ""),
    ("good", "agent.test", OK, ""),
    ("good", "other.test", FAILED, "TLS: certificate is not valid for this host name"),
    ("self-signed", "127.0.0.1", FAILED, "TLS: certificate is not trusted (self-signed certificate)"),
    ("unknown", "127.0.0.1", FAILED, "TLS: certificate is not trusted (unknown issuer)"),
    ("expired", "127.0.0.1", FAILED, "TLS: certificate has expired"),
]


# gRPC.


def aborts(code: grpc.StatusCode) -> GrpcAnswers:
    async def check(_request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        await context.abort(code, "Connection refused by <_SecretObject at 0x7f00>")

    return check


async def junk(_request: bytes, _context: object) -> bytes:
    return b"\xff\xff\xff"


async def silent(_request: bytes, _context: object) -> bytes:
    await asyncio.sleep(9)
    return b""


async def large(_request: bytes, _context: object) -> bytes:
    return b"\x12" + b"\x00" * 10_000_000


serving = reports(HealthCheckResponse.SERVING)
NO_HEALTH = "the server does not offer grpc.health.v1"
UNKNOWN_SERVICE = "the server does not offer the requested gRPC service"
NOT_GRPC = "not a gRPC answer"
CLOSED = "closed the connection without an answer"
GRPC: Sequence[tuple[str, Target, OutcomeKind, str]] = [
    ("SERVING", partial(grpc_server, serving), OK, ""),
    ("NOT_SERVING", partial(grpc_server, reports(2)), FAILED, "the service reports NOT_SERVING"),
    ("UNKNOWN", partial(grpc_server, reports(0)), FAILED, "the service reports UNKNOWN"),
    ("SERVICE_UNKNOWN", partial(grpc_server, reports(3)), FAILED, UNKNOWN_SERVICE),
    ("an undefined status", partial(grpc_server, reports(77)), FAILED, NOT_GRPC),
    ("NOT_FOUND", partial(grpc_server, aborts(grpc.StatusCode.NOT_FOUND)), FAILED, UNKNOWN_SERVICE),
    ("UNIMPLEMENTED", grpc_server, FAILED, NO_HEALTH),
    ("UNAVAILABLE", partial(grpc_server, aborts(grpc.StatusCode.UNAVAILABLE)), FAILED, "gRPC UNAVAILABLE"),
    ("CANCELLED", partial(grpc_server, aborts(grpc.StatusCode.CANCELLED)), FAILED, "gRPC CANCELLED"),
    ("DENIED", partial(grpc_server, aborts(grpc.StatusCode.PERMISSION_DENIED)), FAILED, "gRPC PERMISSION_DENIED"),
    ("junk", partial(grpc_server, junk), FAILED, NOT_GRPC),
    ("10 MB", partial(grpc_server, large), FAILED, "gRPC RESOURCE_EXHAUSTED"),
    ("silent", partial(grpc_server, silent), FAILED, TIMED_OUT),
    ("silent before HTTP/2", partial(listening, respond(after=9)), FAILED, TIMED_OUT),
    ("HTTP/1.1", partial(listening, respond(answer(status="400 Bad Request"))), FAILED, NOT_GRPC),
    ("garbage", partial(listening, respond(b"\x00\x01\x02" * 99)), FAILED, NOT_GRPC),
    ("closes", partial(listening, closes), FAILED, CLOSED),
    ("resets", partial(listening, resets), FAILED, CLOSED),
]

"""The HTTP probe: one request on a new connection, evaluated by its status code."""

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Final, Never

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import LineTooLong
from google.protobuf.struct_pb2 import Struct
from yarl import URL

from ossa_common.json_values import ValueReader
from registry_server import __version__
from registry_server.model.rules import MAX_DETAILS_BYTES, check_details
from registry_server.probes import outcome
from registry_server.probes.outcome import Answer, ProbeFailed
from registry_server.probes.plan import Plan
from registry_server.runtime.fair_slots import FairSlots
from registry_server.security.egress import EgressPolicy, EndpointRefused, ResolvedAddress

_CUT_SHORT = "closed the connection before the answer was complete"
_NOT_HTTP = "not an HTTP answer"
_HEADER_TOO_LARGE = "the header of the answer is too large"
_DEGRADED = "the service reports that it is degraded"

_MAX_CACHED_BODIES = 1_024
_SMALL_BODY_BYTES = 512
_PARSED_PER_TURN = 8
"""Larger bodies parsed in one turn of the event loop, each for up to 2 ms. The owners share them: hundreds of answers
that arrive at once would otherwise look like a pause of this process, during which no failure counts."""
# Header lines are held in memory, twice, until the header is complete; an owner may have hundreds of probes in flight.
_MAX_HEADERS = 64
_MAX_HEADER_BYTES = 4_096
# Receive buffer of the kernel, which doubles the number for its own needs. asyncio reads up to 256 KiB at once: without
# this limit every large body would cost that much, only to be discarded.
_RECEIVE_BUFFER_BYTES: Final = 8_192

_HEADERS: Final[Mapping[str, str]] = {
    "User-Agent": f"ossa-registry/{__version__}",
    # Bodies are read up to a limit, and a truncated compressed body cannot be decoded.
    "Accept-Encoding": "identity",
    "Connection": "close",
}

# OpenSSL's X509_V_ERR_* codes are stable; its texts are not.
_BY_VERIFY_CODE: Final[Mapping[int, str]] = {
    9: outcome.TLS_NOT_YET_VALID,
    10: outcome.TLS_EXPIRED,
    18: outcome.TLS_SELF_SIGNED,
    19: outcome.TLS_SELF_SIGNED_CHAIN,
    20: outcome.TLS_UNKNOWN_ISSUER,
    21: outcome.TLS_UNKNOWN_ISSUER,
    62: outcome.TLS_OTHER_HOST,
    64: outcome.TLS_OTHER_HOST,
}
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


_addresses: ContextVar[Sequence[ResolvedAddress]] = ContextVar("addresses")
"""Addresses of the endpoint that the current task probes: resolvers of aiohttp receive only its name."""

_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant)


class HttpProber:
    """Sends HTTP probes, with one shared session and a separate connection for each."""

    def __init__(self, policy: EgressPolicy, authorities: str | None) -> None:
        """Create the session, in a running event loop; the arguments are those of ``Prober``."""
        self._policy = policy
        self._turns = FairSlots(_PARSED_PER_TURN, max_waiting=sys.maxsize)  # at most one for each probe in flight
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                force_close=True,
                limit=0,  # the caller limits concurrency: waiting here would count as response time
                resolver=_Resolver(),
                use_dns_cache=False,
                socket_factory=self._open_socket,
                ssl=True if authorities is None else ssl.create_default_context(cadata=authorities),
            ),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),  # no timeout: aiohttp rounds those above 5 s up to whole seconds
            skip_auto_headers=("Content-Type",),  # not set for an empty body
            auto_decompress=False,
            trust_env=False,
            read_bufsize=MAX_DETAILS_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
            middlewares=(_reject_retry,),
        )

    async def close(self) -> None:
        """Close open connections."""
        await self._session.close()

    async def send_http_probe(self, plan: Plan, addresses: Sequence[ResolvedAddress], deadline: float) -> Answer:
        """Send the request of a plan and evaluate the answer; see ``Prober``."""
        _addresses.set(addresses)
        response: aiohttp.ClientResponse | None = None
        body = b""
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._session.request(
                    plan.method, URL(plan.url, encoded=True), headers=plan.headers, allow_redirects=False
                )
                body = await _read_body(response)
        # A failure status is conclusive, even if the body is incomplete.
        except TimeoutError:
            if response is None or plan.expects(response.status):
                raise
        except aiohttp.ClientError as error:
            if response is None or plan.expects(response.status):
                raise ProbeFailed(_failure_reason(error)) from error
        finally:
            if response is not None:
                response.close()
        if len(body) > _SMALL_BODY_BYTES:
            await self._turns.acquire(plan.owner)
            asyncio.get_running_loop().call_soon(self._turns.release, plan.owner)
        members, details = _details(body)
        if not plan.expects(response.status):
            raise ProbeFailed(f"HTTP {response.status}", details)
        degraded = str(members.get("status", "")).lower() == "degraded"
        return Answer(_DEGRADED if degraded else "", details)

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        # Checks again, on the address that the socket will connect to.
        denial = self._policy.denial_reason(str(address[0]))
        if denial is not None:
            raise EndpointRefused(denial)
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        return opened


class _Resolver(AbstractResolver):
    """Returns the addresses that the name of the current probe was resolved to."""

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the connector passes AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address.address,
                port=port,
                family=address.family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in _addresses.get()
        ]

    async def close(self) -> None:
        pass


async def _reject_retry(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Prevent aiohttp from repeating a request whose connection broke.

    Retries are meant for reused connections (RFC 9112, 9.3.1); these are always new.
    """
    try:
        return await send(request)
    except aiohttp.ClientConnectionError as error:
        raise ProbeFailed(_failure_reason(error)) from error


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body; empty if it exceeds the size limit of details."""
    body = bytearray()
    while not response.content.at_eof():
        body += await response.content.read(MAX_DETAILS_BYTES + 1 - len(body))
        if len(body) > MAX_DETAILS_BYTES:
            return b""
    return bytes(body)


@lru_cache(_MAX_CACHED_BODIES)  # most services send the same body each time
def _details(body: bytes) -> tuple[Mapping[str, object], Struct | None]:
    """Return the JSON object in a body, as parsed members and as details; omit invalid details."""
    if not body.lstrip().startswith(b"{"):
        return {}, None
    try:
        members = _JSON.decode(body.decode())
    except (ValueError, RecursionError):
        return {}, None
    details = Struct()
    reader = ValueReader("details")
    reader.read_struct(members, "", details)
    check_details(details, "details", reader.violations)
    return members, None if reader.violations else details


def _failure_reason(error: aiohttp.ClientError) -> str:
    """Return the human-readable reason of a failure."""
    match error:
        case aiohttp.ClientConnectorError():
            return _connection_failure_reason(error)
        case aiohttp.ClientOSError() | aiohttp.ClientConnectionResetError():
            return outcome.connection_error(error)
        case aiohttp.ServerDisconnectedError(message=str()):
            return outcome.CLOSED_WITHOUT_ANSWER
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return _CUT_SHORT
        case aiohttp.ClientResponseError():
            return _HEADER_TOO_LARGE if _is_too_large(error) else _NOT_HTTP
        case _:
            return outcome.CONNECTION_FAILED


def _connection_failure_reason(error: aiohttp.ClientConnectorError) -> str:
    match error.os_error:
        case ssl.SSLCertVerificationError() as fault:
            return _BY_VERIFY_CODE.get(fault.verify_code, outcome.TLS_NOT_TRUSTED)
        case ssl.SSLError() as fault:
            return outcome.TLS_NOT_SUPPORTED if fault.reason in _NOT_TLS else outcome.TLS_FAILED
        case fault:
            return outcome.connection_error(fault)


def _is_too_large(error: BaseException | None) -> bool:
    """Return whether the answer's headers exceeded a limit of the parser."""
    while error is not None:
        if isinstance(error, LineTooLong) or "Too many headers" in str(error):
            return True
        error = error.__cause__
    return False

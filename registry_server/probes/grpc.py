"""The gRPC probe: ``grpc.health.v1.Health/Check`` on a new channel.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from registry_server import __version__
from registry_server.probes import outcome
from registry_server.probes.outcome import Answer, ProbeFailed
from registry_server.probes.plan import Plan
from registry_server.security.egress import ResolvedAddress

_CHECK: Final = "/grpc.health.v1.Health/Check"
_UNKNOWN_SERVICE = "the server does not offer the requested gRPC service"
_NOT_GRPC = "not a gRPC answer"
_ROOTS_VARIABLE = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"

_OPTIONS: Final[Sequence[tuple[str, str | int]]] = (
    ("grpc.primary_user_agent", f"ossa-registry/{__version__}"),
    ("grpc.use_local_subchannel_pool", 1),  # a shared pool would reuse connections, and the back-off of failed ones
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", 4_096),
    ("grpc.max_metadata_size", 8_192),
)

_BY_STATUS: Final[Mapping[int, str]] = {
    HealthCheckResponse.UNKNOWN: "the service reports UNKNOWN",
    HealthCheckResponse.NOT_SERVING: "the service reports NOT_SERVING",
    HealthCheckResponse.SERVICE_UNKNOWN: _UNKNOWN_SERVICE,
}

# gRPC reports the cause of a failed connection only as text. The first match wins.
_NOT_CONNECTED: Final = "failed to connect to all addresses"
_BY_TEXT: Final[Sequence[tuple[str, str]]] = (
    ("Connection refused", outcome.CONNECTION_REFUSED),
    ("Too many open files", outcome.TOO_MANY_FILES),
    ("Cannot assign requested address", outcome.NO_LOCAL_ADDRESS),
    ("No route to host", outcome.HOST_UNREACHABLE),
    ("Network is unreachable", outcome.NETWORK_UNREACHABLE),
    ("Hostname Verification Check failed", outcome.TLS_OTHER_HOST),
    ("WRONG_VERSION_NUMBER", outcome.TLS_NOT_SUPPORTED),
    ("self signed certificate in certificate chain", outcome.TLS_SELF_SIGNED_CHAIN),
    ("self signed certificate", outcome.TLS_SELF_SIGNED),
    ("unable to get local issuer certificate", outcome.TLS_UNKNOWN_ISSUER),
    ("certificate has expired", outcome.TLS_EXPIRED),
    ("certificate is not yet valid", outcome.TLS_NOT_YET_VALID),
    ("CERTIFICATE_VERIFY_FAILED", outcome.TLS_NOT_TRUSTED),
    ("handshake failed", outcome.TLS_FAILED),
    ("Failed parsing HTTP/2", _NOT_GRPC),
    ("Socket closed", outcome.CLOSED_WITHOUT_ANSWER),
    ("Connection reset", outcome.CLOSED_WITHOUT_ANSWER),
    ("Broken pipe", outcome.CLOSED_WITHOUT_ANSWER),
)


class GrpcProber:
    """Sends gRPC probes."""

    def __init__(self, authorities: bytes | None) -> None:
        """Create the credentials; without ``authorities``, channels trust those that gRPC ships."""
        # Created once: parsing the authorities of a system takes milliseconds.
        self._credentials = grpc.ssl_channel_credentials(authorities)

    async def send_grpc_probe(self, plan: Plan, addresses: Sequence[ResolvedAddress], deadline: float) -> Answer:
        """Check the health of the service of a plan; see ``Prober``."""
        request = HealthCheckRequest(service=plan.grpc_service).SerializeToString()
        try:
            async with asyncio.timeout_at(deadline):
                async with self._channel(plan, addresses) as channel:
                    # The answer is parsed below, because gRPC would log one that cannot be parsed.
                    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CHECK)
                    answer = await check(request, timeout=deadline - asyncio.get_running_loop().time())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError from error
            raise ProbeFailed(_failure_reason(error)) from error
        try:
            status = HealthCheckResponse.FromString(answer).status
        except DecodeError as error:
            raise ProbeFailed(_NOT_GRPC) from error
        if status != HealthCheckResponse.SERVING:
            raise ProbeFailed(_BY_STATUS.get(status, _NOT_GRPC))
        return Answer()

    def _channel(self, plan: Plan, addresses: Sequence[ResolvedAddress]) -> grpc.aio.Channel:
        options = [*_OPTIONS, ("grpc.default_authority", plan.authority)]
        if not plan.tls:
            return grpc.aio.insecure_channel(_target(addresses), options)
        # The target is an address, but the certificate must be valid for the host name.
        options.append(("grpc.ssl_target_name_override", plan.host.rstrip(".")))
        return grpc.aio.secure_channel(_target(addresses), self._credentials, options)


def system_authorities() -> bytes | None:
    """Return the certificate authorities that this system trusts, as PEM; ``None`` = leave it to gRPC. Reads files.

    gRPC trusts only the authorities that it ships, so HTTP probes would trust an authority installed on the host, and
    gRPC probes would not. If gRPC's own environment variable is set, gRPC loads that file once, whereas it parses
    authorities passed to it for each channel (7 ms for 150 of them).
    """
    if _ROOTS_VARIABLE in os.environ:
        return None
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else sorted(Path(paths.capath).glob("*.0")) if paths.capath else []
    return b"\n".join(file.read_bytes() for file in files) or None


def _target(addresses: Sequence[ResolvedAddress]) -> str:
    """Return all addresses as one target; gRPC tries them in order with short delays (RFC 8305).

    A target contains one address family, so IPv4 addresses next to IPv6 ones are written as mapped addresses.
    """
    if all(address.family == socket.AF_INET for address in addresses):
        return "ipv4:" + ",".join(f"{address.address}:{address.port}" for address in addresses)
    return "ipv6:" + ",".join(
        f"[::ffff:{address.address}]:{address.port}"
        if address.family == socket.AF_INET
        else f"[{address.address}]:{address.port}"
        for address in addresses
    )


def _failure_reason(error: grpc.aio.AioRpcError) -> str:
    """Return the human-readable reason of a failure."""
    code, description = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and description.startswith(_NOT_CONNECTED):
        return next((text for part, text in _BY_TEXT if part in description), outcome.CONNECTION_FAILED)
    if code is grpc.StatusCode.NOT_FOUND:
        return _UNKNOWN_SERVICE
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "the server does not offer grpc.health.v1"
    return f"gRPC {code.name}"

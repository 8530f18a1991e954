"""Connections to one or several registry processes: one target is used until it fails, then the next one.

gRPC offers a similar feature, a target ``ipv4:a,b`` with a load-balancing policy. It is not used, for three reasons:

- The scheme accepts only addresses, no host names, and TLS needs a host name.
- ``round_robin`` spreads the calls of one client over processes whose replicas are at different revisions, so that
  every read after a write would wait for its revision.
- ``pick_first`` moves to the next address only when the *connection* fails, not when the process responds that it is
  draining or has lost its store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_client.errors import Unauthenticated
from registry_client.retry import Backoff

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_CHANNEL_OPTIONS: Final = (
    # Pages are up to 3 MiB; the events of one revision, which share a message, may be larger.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # Detects dead peers on idle connections too. Servers permit one ping in 5 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's default back-off of up to 2 minutes outlasts most leases; the shortest lease is 5 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Despite its name, this is the timeout of one connection attempt.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # The SDK retries by itself, because gRPC cannot determine which calls are safe to repeat.
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS configuration of the connection. ``Tls()`` trusts the certificate authorities bundled with gRPC."""

    ca: bytes | Path | None = None
    """Certificate authorities to trust instead: PEM text, or the path of a PEM file."""
    certificate: bytes | Path | None = field(default=None, repr=False)
    """Certificate chain of the client, for servers that require one (mutual TLS)."""
    key: bytes | Path | None = field(default=None, repr=False)
    """Private key of ``certificate``."""
    server_name: str = ""
    """Name expected in the server's certificate, if it differs from the host name of the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the channel credentials for gRPC.

        Raises:
            OSError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.certificate))


class Channels:
    """One channel for each target; ``stub`` is the stub of the current target.

    Channels are created on first use, in the event loop that uses them.
    """

    def __init__(
        self, targets: Sequence[str], tls: Tls | None, token: str | Callable[[], str] | None, backoff: Backoff
    ) -> None:
        if not targets or not all(targets):
            raise ValueError("at least one target is needed, such as localhost:50051")
        self._targets = tuple(dict.fromkeys(targets))
        self._tls = tls
        self._token = token
        self.backoff = backoff
        """How long to wait between attempts."""
        self._open: dict[str, tuple[grpc.aio.Channel, RegistryServiceAsyncStub]] = {}
        self._current = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def target(self) -> str:
        """The current target."""
        return self._targets[self._current]

    @property
    def stub(self) -> "RegistryServiceAsyncStub":
        """Stub of the current target.

        Raises:
            RuntimeError: The client is closed.
        """
        return self._connection()[1]

    @property
    def channel(self) -> grpc.aio.Channel:
        """Channel of the current target, for other gRPC services of the registry; raises like ``stub``."""
        return self._connection()[0]

    def fail_over(self, failed_target: str, failures: int = 1, at_least: float = 0.0) -> float:
        """Switch to the next target, unless another task has done so already.

        Args:
            failed_target: Target of the attempt that failed.
            failures: Number of consecutive failures, including this one.
            at_least: Seconds that the registry requested before the next attempt.

        Returns:
            The seconds to wait before the next attempt; 0 until every target has failed.
        """
        if failed_target == self.target:
            self._current = (self._current + 1) % len(self._targets)
        return 0.0 if failures < len(self._targets) else self.backoff.delay(failures, at_least)

    @property
    def has_token_source(self) -> bool:
        """Whether the token comes from a function, which may return a new one after it has expired."""
        return callable(self._token)

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call. A token function is called each time, so that the token may change.

        Raises:
            Unauthenticated: The token function failed.
        """
        try:
            token = self._token() if callable(self._token) else self._token
        except Exception as error:
            raise Unauthenticated(f"cannot obtain the token: {error}") from error
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def close(self) -> None:
        """Cancel all calls and close all connections. Idempotent."""
        self._closed = True
        for channel, _ in self._open.values():
            await channel.close()
        self._open.clear()

    def _connection(self) -> "tuple[grpc.aio.Channel, RegistryServiceAsyncStub]":
        if self._closed:
            raise RuntimeError("the client is closed")
        if self.target not in self._open:
            channel = self._create_channel(self.target)
            self._open[self.target] = channel, RegistryServiceStub(channel)
        return self._open[self.target]

    def _create_channel(self, target: str) -> grpc.aio.Channel:
        options: list[tuple[str, str | int]] = list(_CHANNEL_OPTIONS)
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return grpc.aio.secure_channel(target, self._tls.credentials(), options=options)


def _pem(value: bytes | Path | None) -> bytes | None:
    return value.read_bytes() if isinstance(value, Path) else value

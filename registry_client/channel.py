"""Connections to one or several registry processes: one target is used until it fails, then the next one.

gRPC offers a similar feature, a target ``ipv4:a,b`` with a load-balancing policy. It is not used, for three reasons:

- The scheme accepts only addresses, no host names, and TLS needs a host name.
- ``round_robin`` spreads the calls of one client over processes whose replicas are at different revisions, so that
  every read after a write would wait for its revision.
- ``pick_first`` moves to the next address only when the *connection* fails, not when the process responds that it is
  draining or has lost its store.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc

from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, Unauthenticated
from registry_client.forks import check_process, track_channel
from registry_client.retry import Backoff
from registry_client.targets import Proxy, parse_proxy, parse_target, proxy_from_environment

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

_IN_USE: Final = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.CONNECTING)
"""States in which a channel may have new calls, so that it cannot be replaced."""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS configuration of the connection. ``Tls()`` trusts the certificate authorities bundled with gRPC.

    Files that were replaced are read again before the client connects the next time.
    """

    ca: bytes | Path | None = None
    """Certificate authorities to trust instead: PEM text, or the path of a PEM file."""
    certificate: bytes | Path | None = field(default=None, repr=False)
    """Certificate chain of the client, for servers that require one (mutual TLS)."""
    key: bytes | Path | None = field(default=None, repr=False)
    """Private key of ``certificate``."""
    server_name: str = ""
    """Name expected in the server's certificate, if it differs from the host name of the target."""

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a Path, or bytes with PEM text, not a str")
        if (self.certificate is None) != (self.key is None):  # gRPC would abort the process
            raise ValueError("certificate and key of the client belong together: set both, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the channel credentials for gRPC.

        Raises:
            OSError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.certificate))

    def file_versions(self) -> tuple[tuple[int, int, int], ...]:
        """Return values that change when a file is replaced or written.

        Raises:
            OSError: A file is missing.
        """
        files = [each.stat() for each in (self.ca, self.key, self.certificate) if isinstance(each, Path)]
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in files)


class _Connection(NamedTuple):
    channel: grpc.aio.Channel
    stub: "RegistryServiceAsyncStub"
    proxy: Proxy | None
    file_versions: tuple[tuple[int, int, int], ...]
    """Versions of the TLS files that the channel uses."""


class Channels:
    """One channel for each target; ``stub`` is the stub of the current target.

    Channels are created on first use, in the event loop that uses them.

    Args:
        targets: Addresses of the registry.
        tls: TLS configuration.
        token: Bearer token, or a function that returns it.
        backoff: How long to wait between attempts.
        proxy: URL of an HTTP proxy; True = by the environment, False = none.
    """

    def __init__(
        self,
        targets: Sequence[str],
        tls: Tls | None,
        token: str | Callable[[], str] | None,
        backoff: Backoff,
        *,
        proxy: str | bool = True,
    ) -> None:
        if not targets:
            raise ValueError("at least one target is needed, such as localhost:50051")
        self._targets = tuple(dict.fromkeys(map(parse_target, targets)))
        self._tls = tls
        self._token = token
        self._proxy = parse_proxy(proxy) if isinstance(proxy, str) else proxy
        self.backoff = backoff
        """How long to wait between attempts."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that the client belongs to: that of its first use."""
        self._open: dict[str, _Connection] = {}
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
            RuntimeError: The client is closed, or belongs to another event loop or process.
        """
        return self._connection().stub

    @property
    def channel(self) -> grpc.aio.Channel:
        """Channel of the current target, for other gRPC services of the registry; raises like ``stub``."""
        return self._connection().channel

    def check_usable(self) -> None:
        """Check that the client can be used here, and bind it to the running event loop on first use.

        Raises:
            RuntimeError: The client is closed, or belongs to another event loop or process.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            check_process()
            if self._loop is not None:
                raise RuntimeError(
                    "the client belongs to the event loop of its first use, which is not the running one: create a"
                    " client in each event loop and thread (each asyncio.run starts an event loop)"
                )
            self._loop = loop

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

    def reopen_delay(self, failed_target: str, failures: int, error: RegistryError) -> float:
        """Return the delay before a stream is opened again; switch to the next target if the current one has failed."""
        if isinstance(error, Unauthenticated):
            return self.backoff.delay(failures)
        return self.fail_over(failed_target, failures)

    def name_proxy(self, error: RegistryError, target: str) -> None:
        """Add the proxy, if there is one, to an error that may come from it instead of the registry."""
        connection = self._open.get(target)
        if connection is None or connection.proxy is None or error.reason or "proxy" in error.metadata:
            return
        if isinstance(error, RegistryUnavailable | DeadlineExceeded):
            error.metadata["proxy"] = str(connection.proxy)
            error.args = (f"{error}; the connection uses the proxy {connection.proxy}",)

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
        for connection in self._open.values():
            await connection.channel.close()
        self._open.clear()

    def _connection(self) -> _Connection:
        self.check_usable()
        connection = self._open.get(self.target)
        if connection is None:
            connection = self._open[self.target] = self._connect(self.target)
        elif self._tls is not None and connection.channel.get_state() not in _IN_USE:
            # TLS files may have been replaced; while they are, one may be missing. The replaced channel is not closed,
            # because calls in flight may still use it: it ends with the last of them.
            with suppress(OSError):
                if self._tls.file_versions() != connection.file_versions:
                    connection = self._open[self.target] = self._connect(self.target)
        return connection

    def _connect(self, target: str) -> _Connection:
        options: list[tuple[str, str | int]] = list(_CHANNEL_OPTIONS)
        proxy = proxy_from_environment(target, os.environ) if self._proxy is True else self._proxy or None
        options.append(("grpc.enable_http_proxy", int(proxy is not None)))
        if proxy is not None:
            options.append(("grpc.http_proxy", proxy.url))
        versions: tuple[tuple[int, int, int], ...] = ()
        if self._tls is None:
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            if self._tls.server_name:
                options.append(("grpc.ssl_target_name_override", self._tls.server_name))
            versions = self._tls.file_versions()  # before the content: a later change is noticed the next time
            channel = grpc.aio.secure_channel(target, self._tls.credentials(), options=options)
        track_channel(channel)
        return _Connection(channel, RegistryServiceStub(channel), proxy, versions)


def _pem(value: bytes | Path | None) -> bytes | None:
    return value.read_bytes() if isinstance(value, Path) else value

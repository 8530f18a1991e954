"""Connections to one or several registries: one is used until it fails, then the next.

gRPC could do that itself, with a target ``ipv4:a,b`` and its ``round_robin`` policy. It is not used, for three reasons.
That scheme takes addresses only, no host names (and TLS needs a name). ``round_robin`` spreads the calls of one client
over processes of which each is behind the others by a moment, so that every read after a write has to wait for its
revision. And its ``pick_first``, which sticks, goes on only when the *connection* fails, not when the process at the
other end answers that it drains or has lost its store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_client.errors import Unauthenticated

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_OPTIONS: Final = (
    # A server answers pages of 3 MiB; what one revision brings to a watch may be larger.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # Finds a peer that is gone without a word, also while there is nothing to say. Servers allow a ping in 5 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # By default gRPC waits up to 2 minutes before it connects again: leases would run out. The shortest lease is 5 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name: how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # Retries are ours: only we know what is safe.
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to secure the connection. ``Tls()`` trusts the authorities that gRPC brings."""

    ca: bytes | Path | None = None
    """Certificates of authorities to trust instead, PEM or the file with it."""
    certificate: bytes | Path | None = field(default=None, repr=False)
    """Certificate chain of the client, for servers that ask for one."""
    key: bytes | Path | None = field(default=None, repr=False)
    """Private key of ``certificate``."""
    server_name: str = ""
    """Name that the server's certificate must have, if it is not that of the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC wants.

        Raises:
            OSError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.certificate))


class Channels:
    """One channel for each target; ``stub`` is that of the target in use.

    Channels are made when they are first used, in the event loop that uses them.
    """

    def __init__(self, targets: Sequence[str], tls: Tls | None, token: str | Callable[[], str] | None) -> None:
        if not targets or not all(targets):
            raise ValueError("at least one target is needed, such as localhost:50051")
        self._targets = tuple(dict.fromkeys(targets))
        self._tls = tls
        self._token = token
        self._open: dict[str, tuple[grpc.aio.Channel, RegistryServiceAsyncStub]] = {}
        self._current = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def target(self) -> str:
        """Target in use."""
        return self._targets[self._current]

    @property
    def stub(self) -> "RegistryServiceAsyncStub":
        """Stub of the target in use.

        Raises:
            RuntimeError: The client is closed.
        """
        if self._closed:
            raise RuntimeError("this client is closed")
        if self.target not in self._open:
            channel = self._channel(self.target)
            self._open[self.target] = channel, RegistryServiceStub(channel)
        return self._open[self.target][1]

    def give_up(self, target: str) -> bool:
        """Goes on to the next target, unless somebody else has done so; tells whether there is another one."""
        if target == self.target:
            self._current = (self._current + 1) % len(self._targets)
        return target != self.target

    @property
    def renews_token(self) -> bool:
        """Whether a token that has expired may be followed by another one."""
        return callable(self._token)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call. A token that is a function is asked each time, so that it may change.

        Raises:
            Unauthenticated: The function failed.
        """
        try:
            token = self._token() if callable(self._token) else self._token
        except Exception as error:
            raise Unauthenticated(f"the token could not be had: {error}") from error
        return (("authorization", f"Bearer {token}"),) if token else ()

    async def close(self) -> None:
        """Ends all calls and connections. Idempotent."""
        self._closed = True
        for channel, _ in self._open.values():
            await channel.close()
        self._open.clear()

    def _channel(self, target: str) -> grpc.aio.Channel:
        options: list[tuple[str, str | int]] = list(_OPTIONS)
        if self._tls is None:
            return grpc.aio.insecure_channel(target, options=options)
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return grpc.aio.secure_channel(target, self._tls.credentials(), options=options)


def _pem(value: bytes | Path | None) -> bytes | None:
    return value.read_bytes() if isinstance(value, Path) else value

"""``RpcGate``: admits every RPC, by the credentials in its metadata and on its connection."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from registry_server.errors import Unauthenticated
from registry_server.rpc.codec import Context
from registry_server.security.authenticator import CertificateNames, Credentials
from registry_server.security.guard import Guard, Peer, Session
from registry_server.security.identity import UNCHECKED, Identity, current_identity
from registry_server.security.permissions import Permission

_NO_CREDENTIALS: Final = Credentials()
_MAX_CACHED_ADDRESSES: Final = 4_096
"""Peers whose parsed address is cached, so that it is not parsed again for each call."""
_CERTIFICATE_NAMES: Final = {"peer_uri": "uri", "peer_dns": "dns", "x509_common_name": "common_name"}
"""Keys of the auth context for the names in a client certificate (grpc/grpc_security_constants.h)."""


class RpcGate:
    """Admits RPCs through the guard."""

    def __init__(self, guard: Guard, *, certificates: bool) -> None:
        """Create the gate.

        Args:
            guard: Authenticates and authorises callers.
            certificates: Whether connections carry client certificates.
        """
        self.guard = guard
        self._certificates = certificates

    async def admit(self, context: Context, permission: Permission) -> Identity:
        """Admit a call and set its identity for the code that handles it.

        Raises:
            RegistryError: The call is rejected; see ``Guard.admit``.
        """
        identity = self.admit_known(context, permission)
        if identity is None:
            identity = await self.guard.admit(self._credentials(context), permission, _peer_of(context))
            current_identity.set(identity)
        return identity

    def admit_known(self, context: Context, permission: Permission) -> Identity | None:
        """Admit a call without a coroutine if its credentials are cached, as for almost every call.

        Returns:
            The caller's identity; ``None`` = use ``admit``.

        Raises:
            RateLimited: Too many calls.
        """
        identity = self.guard.admit_known(self._credentials(context), permission, _peer_of(context))
        if identity is not None and identity is not UNCHECKED:  # the default of current_identity
            current_identity.set(identity)
        return identity

    @contextmanager
    def session(
        self, context: Context, identity: Identity, permission: Permission, *, watches: bool
    ) -> Iterator[Session]:
        """Open a session for a stream; see ``Guard.session``."""
        credentials = self._credentials(context)
        with self.guard.session(identity, credentials, permission, _peer_of(context), watches=watches) as session:
            yield session

    def _credentials(self, context: Context) -> Credentials:
        if not self.guard.authenticates:
            return _NO_CREDENTIALS
        authorization = api_key = ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                if authorization:
                    raise Unauthenticated("send one credential, not two")
                authorization = _text(value)
            elif key == "x-api-key":
                if api_key:
                    raise Unauthenticated("send one credential, not two")
                api_key = _text(value)
        certificate = _certificate_names(context) if self._certificates else ()
        return Credentials(authorization, api_key, certificate)


def _peer_of(context: Context) -> Peer:
    return lambda: _address(context.peer())


@lru_cache(_MAX_CACHED_ADDRESSES)
def _address(peer: str) -> str:
    """Return the address in ``ipv4:1.2.3.4:5`` or ``ipv6:%5B::1%5D:5`` without its port, in the same form as for HTTP.

    All clients of a unix socket have the same address.
    """
    kind, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if kind in {"ipv4", "ipv6"} else kind


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")


def _certificate_names(context: Context) -> CertificateNames:
    """Return the names in the connection's certificate, which gRPC has verified."""
    properties = context.auth_context()
    return tuple(
        (kind, name.decode("utf-8", "replace"))
        for key, kind in _CERTIFICATE_NAMES.items()
        for name in properties.get(key, ())
    )

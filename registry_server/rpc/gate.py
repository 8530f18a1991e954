"""``RpcGate``: the guard before every RPC. Reads what a caller shows from metadata and connection."""

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

_NOTHING: Final = Credentials()
_REMEMBERED: Final = 4_096
"""Connections whose address is read once, and not for each of their calls."""
_NAMES: Final = {"peer_uri": "uri", "peer_dns": "dns", "x509_common_name": "common_name"}
"""What gRPC tells of the certificate of a connection (grpc/grpc_security_constants.h)."""


class RpcGate:
    """Admits RPCs."""

    def __init__(self, guard: Guard, *, certificates: bool) -> None:
        """Makes it.

        Args:
            guard: Who decides.
            certificates: Whether clients show certificates.
        """
        self.guard = guard
        self._certificates = certificates

    async def admit(self, context: Context, permission: Permission) -> Identity:
        """Lets a call in, and tells all that it does who calls.

        Raises:
            RegistryError: The call is not let in; see ``Guard.admit``.
        """
        identity = self.admit_known(context, permission)
        if identity is None:
            identity = await self.guard.admit(self._presented(context), permission, _peer_of(context))
            current_identity.set(identity)
        return identity

    def admit_known(self, context: Context, permission: Permission) -> Identity | None:
        """The same for a caller who is known and may, as in almost every call.

        Returns:
            Who calls; ``None``: ask ``admit``.

        Raises:
            RateLimited: Too many calls.
        """
        identity = self.guard.admit_known(self._presented(context), permission, _peer_of(context))
        if identity is not None and identity is not UNCHECKED:  # which everybody is until something else is said
            current_identity.set(identity)
        return identity

    @contextmanager
    def session(
        self, context: Context, identity: Identity, permission: Permission, *, watches: bool
    ) -> Iterator[Session]:
        """Looks after a stream; see ``Guard.session``."""
        presented = self._presented(context)
        with self.guard.session(identity, presented, permission, _peer_of(context), watches=watches) as session:
            yield session

    def _presented(self, context: Context) -> Credentials:
        if not self.guard.checks:
            return _NOTHING
        authorization = api_key = ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                if authorization:
                    raise Unauthenticated("give one credential, not two")
                authorization = _text(value)
            elif key == "x-api-key":
                if api_key:
                    raise Unauthenticated("give one credential, not two")
                api_key = _text(value)
        certificate = _names_of(context) if self._certificates else ()
        return Credentials(authorization, api_key, certificate)


def _peer_of(context: Context) -> Peer:
    return lambda: _address(context.peer())


@lru_cache(_REMEMBERED)
def _address(peer: str) -> str:
    """The address in ``ipv4:1.2.3.4:5`` or ``ipv6:%5B::1%5D:5``, as HTTP has it; all of a unix socket are one.

    Without the port, which is another one for each connection.
    """
    kind, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if kind in {"ipv4", "ipv6"} else kind


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("ascii", "replace")


def _names_of(context: Context) -> CertificateNames:
    """Names in the certificate of the connection, which gRPC has verified."""
    facts = context.auth_context()
    return tuple((kind, name.decode("utf-8", "replace")) for key, kind in _NAMES.items() for name in facts.get(key, ()))

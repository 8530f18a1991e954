"""Startup check: refuse to expose an unprotected server to other machines."""

import ipaddress

import structlog

from registry_server.config import Settings
from registry_server.config.addresses import split_host_port
from registry_server.errors import ConfigurationError

log = structlog.get_logger(__name__)


def is_local(address: str) -> bool:
    """Return whether only this machine can connect to a listen address."""
    if address.startswith("unix:"):
        return True
    parts = split_host_port(address)
    if parts is None:
        return False
    if parts.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.host.partition("%")[0]).is_loopback
    except ValueError:  # a host name, which may resolve to any address
        return False


def check_exposure(settings: Settings) -> None:
    """Reject settings that expose the server without TLS or authentication; with ``insecure``, only log a warning.

    Raises:
        ConfigurationError: Other machines can reach an address, but TLS or authentication is off.
    """
    missing = []
    if settings.tls.cert_file is None:
        missing.append("TLS is off (tls.cert_file, tls.key_file)")
    if settings.security.policy_file is None and settings.tls.client_ca_file is None:
        missing.append("callers need no credential (security.policy_file or tls.client_ca_file)")
    addresses = {"grpc.address": settings.grpc.address, "http.address": settings.http.address}
    exposed = {key: address for key, address in addresses.items() if not is_local(address)}
    if not missing or not exposed:
        return
    problem = " and ".join(missing)
    if not settings.insecure:
        raise ConfigurationError(
            "\n".join(
                f"{key}: other machines can reach {address}, but {problem}; see docs/security.md, or serve anyway "
                "with --insecure"
                for key, address in exposed.items()
            )
        )
    log.warning("serving without protection", addresses=list(exposed.values()), problem=problem)

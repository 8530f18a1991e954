"""Whether others can reach a server that does not protect itself."""

import ipaddress

import structlog

from registry_server.config import Settings
from registry_server.config.addresses import split_host_port
from registry_server.errors import ConfigurationError

log = structlog.get_logger(__name__)


def is_local(address: str) -> bool:
    """Whether only this machine can connect to an address to listen on."""
    if address.startswith("unix:"):
        return True
    parts = split_host_port(address)
    if parts is None:
        return False
    if parts.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.host.partition("%")[0]).is_loopback
    except ValueError:  # a name: nobody can tell
        return False


def check_exposure(settings: Settings) -> None:
    """Refuses to serve others without protection, unless it is wanted; then it warns.

    Raises:
        ConfigurationError: An address can be reached from elsewhere, but TLS or authentication is off.
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
    why = " and ".join(missing)
    if not settings.insecure:
        raise ConfigurationError(
            "\n".join(
                f"{key}: other machines can reach {address}, but {why}; see docs/security.md, or serve all the same "
                "with --insecure"
                for key, address in exposed.items()
            )
        )
    log.warning("serves other machines without protection", addresses=list(exposed.values()), why=why)

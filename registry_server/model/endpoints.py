"""Endpoints of services: their validation, and the probe that follows from them."""

import re
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import urlsplit

from ossa.registry.v1.service_pb2 import Service
from ossa_common.violations import Violation, quoted
from registry_server.model import rules

ProbeKind = Literal["http", "grpc", "tcp", "heartbeat", "none"]
UNPROBED: Final[frozenset[ProbeKind]] = frozenset({"heartbeat", "none"})
"""Kinds without a probe: heartbeats or reports determine the health."""

MAX_ENDPOINT_LENGTH: Final = 2_048
DENIED_SCHEMES: Final = ("javascript", "data", "file", "vbscript")
"""Schemes of code, content and local files, which a page that shows endpoints as links must never open."""
PROBES_BY_SCHEME: Final[dict[str, ProbeKind]] = {
    "http": "http",
    "https": "http",
    "grpc": "grpc",
    "grpcs": "grpc",
    "ws": "tcp",
    "wss": "tcp",
}
"""Default probes of schemes that have a default port; the others are probed by TCP if the endpoint has a port."""

_NOT_VISIBLE_ASCII = re.compile(r"[^\x21-\x7e]|\\")
_WITHOUT_SCHEME = re.compile(r"(?://)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[^@]*)?")
_MAX_CACHED_ENDPOINTS = 4_096


def check_endpoint(endpoint: str, at: str, found: list[Violation]) -> None:
    """Check the URL of a service."""
    fault: str | None
    if not endpoint:
        fault = "is required: an absolute URL such as https://host:8080"
    elif len(endpoint) > MAX_ENDPOINT_LENGTH:
        fault = f"has {len(endpoint)} characters; at most {MAX_ENDPOINT_LENGTH} are allowed"
    # Checked before parsing, because urlsplit silently drops line breaks and leading spaces.
    elif stray := _NOT_VISIBLE_ASCII.search(endpoint):
        fault = f"has {stray.group()!r} at position {stray.start()}; a URL is visible ASCII without backslashes"
    else:
        fault = _url_fault(endpoint)
    if fault:
        found.append(Violation(at, fault))


def probe_kind(service: Service) -> ProbeKind:
    """Return how a service is probed: by its health check, otherwise by its endpoint."""
    kind: ProbeKind | None = service.health_check.WhichOneof("probe")
    return kind or _default_probe(service.endpoint)


@lru_cache(_MAX_CACHED_ENDPOINTS)
def _default_probe(endpoint: str) -> ProbeKind:
    try:
        parts = urlsplit(endpoint)
        return PROBES_BY_SCHEME.get(parts.scheme) or ("heartbeat" if parts.hostname and not parts.port else "tcp")
    except ValueError:
        return "tcp"  # whose probe reports that the endpoint is not valid


def _url_fault(endpoint: str) -> str | None:
    # ``host:8080`` would be parsed as a URL with the scheme ``host``.
    if "://" not in endpoint and _WITHOUT_SCHEME.fullmatch(endpoint):
        return f"has no scheme; write {quoted('http://' + endpoint.lstrip('/'))}"
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return "is not a URL: the brackets of its host do not hold an IPv6 address"
    if parts.scheme in DENIED_SCHEMES:
        return f"must not have the scheme {parts.scheme}; use one such as http, https, grpc or mcp"
    if not parts.scheme or not parts.netloc:
        return f"has no {'host' if parts.scheme else 'scheme'}; write {parts.scheme or 'http'}://host:port"
    # Never quoted, because the value may contain a password.
    if "@" in parts.netloc:
        return "contains a user name or password; remove it, because every reader of the registry can see this field"
    return rules.authority_fault(parts.netloc, port_required=parts.scheme == "tcp")

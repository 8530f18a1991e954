"""``BrowserRules``: rejects requests that a web page of another site makes with the browser of a user.

A browser reaches what its user reaches, such as a registry on loopback that needs no credential. Two kinds of requests
are a danger:

- DNS rebinding: a page of ``evil.example`` changes the address of its name to the registry's. The browser then treats
  the registry as the page's own origin. Only ``Host`` reveals it.
- Requests that browsers send without a preflight, such as a POST without a body. The page cannot read the answer, but
  the request is executed. ``Sec-Fetch-Site`` and ``Origin``, which pages cannot change, reveal it.

Other clients send neither ``Origin`` nor ``Sec-Fetch-Site``.
"""

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from aiohttp import hdrs
from multidict import istr

from ossa_common.violations import quoted
from registry_server.config import HttpSettings
from registry_server.config.addresses import split_host_port
from registry_server.errors import PermissionDenied
from registry_server.security.exposure import is_local

_SEC_FETCH_SITE: Final = istr("Sec-Fetch-Site")
_READS: Final = frozenset({"GET", "HEAD"})
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_CACHED_HOSTS: Final = 256
"""Values of ``Host`` whose check is cached: it takes 5 µs."""


class BrowserRules:
    """Decides which requests are accepted, by their headers."""

    def __init__(self, settings: HttpSettings, *, needs_credential: bool) -> None:
        """Create the rules of a server.

        Args:
            settings: Address, allowed hosts and origins.
            needs_credential: Whether callers need a credential, which a page of another site does not have.
        """
        self._strict = not needs_credential and is_local(settings.address)
        self._names = {*settings.allowed_hosts, "localhost", settings.host_port.host.lower()}
        self._any_host = "*" in self._names or not (self._strict or settings.allowed_hosts)
        self._origins = frozenset(settings.cors_origins)
        self._is_allowed_host = lru_cache(_CACHED_HOSTS)(self._check_host)

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Check a request.

        Raises:
            PermissionDenied: It comes from a page of another site.
        """
        host = headers.get(hdrs.HOST, "")  # absent in HTTP/1.0, which no browser uses
        if host and not self._any_host and not self._is_allowed_host(host):
            parts = split_host_port(host, default_port=0)
            name = quoted(parts.host if parts else host)  # http.allowed_hosts lists names without a port
            raise PermissionDenied(
                f"the registry is not known as {name}: call it by its address, or add the host name to "
                "http.allowed_hosts"
            )
        origin, site = headers.get(hdrs.ORIGIN), headers.get(_SEC_FETCH_SITE)
        if (origin is None and site is None) or site in {"same-origin", "none"}:
            return
        if method == "OPTIONS":  # a preflight, which the browser judges by the headers of the answer
            return
        if method in _READS and (origin is None or not self._strict):  # without Origin: a link to a page
            return
        if origin is not None and self._is_allowed_origin(origin, host):
            return
        raise PermissionDenied(
            f"requests from pages of {'another site' if origin is None else quoted(origin)} are not accepted: add the "
            "origin to http.cors_origins"
        )

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        # Only the host is compared: a proxy may have terminated TLS, and may add the default port that browsers omit.
        scheme, _, origin_host = origin.lower().partition("://")
        return origin_host == host.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))

    def _check_host(self, host: str) -> bool:
        parts = split_host_port(host.lower(), default_port=0)
        if parts is None:
            return False
        try:
            address = ipaddress.ip_address(parts.host)
        except ValueError:
            return parts.host.rstrip(".") in self._names
        # A page that a browser loaded from an address cannot be rebound: other addresses are only unexpected.
        return not self._strict or address.is_loopback or parts.host in self._names

"""Syntax of the addresses in settings: listen addresses, Redis URLs and CORS origins."""

import ipaddress
import re
import sys
from typing import NamedTuple

from pydantic import Secret
from pydantic_core import PydanticCustomError

EMBEDDED = "embedded"
"""Value of ``redis.url`` for a private redis-server that the registry starts."""

_MAX_PORT = 65535
_HOST_PORT = re.compile(
    r"(?:\[(?P<ipv6>[^\s\[\]]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?))(?::(?P<port>[0-9]{1,5}))?"
)

# An unescaped '@', '/', '?' or '#' in a password would move part of it into a component that is not masked. Each
# of them is therefore accepted only as a delimiter, and a URL that does not match is never shown.
_REDIS_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://"
    r"(?P<userinfo>[^\s:/?#@]*(?::[^\s/?#@]*)?@)?"
    r"(?P<hosts>[^\s/?#@]*)(?P<path>/[^\s?#@]*)?(?P<query>\?[^\s#@]*)?"
)
_SECRET_OPTION = re.compile(r"(?i)(\b\w*(?:pass|secret|token)\w*=)[^&\s'\"]*")
_USERINFO = re.compile(r"://.*@")


def bad_setting(rule: str, **context: object) -> PydanticCustomError:
    """Return the error for an invalid value. Pydantic would prefix a ``ValueError`` with 'Value error, '.

    Args:
        rule: The rule, such as 'must be ...'; ``{name}`` is replaced by the value from the context.
        context: ``other`` is the key of another setting that the rule refers to.
    """
    return PydanticCustomError("setting", rule, context)


class _UrlFormat(NamedTuple):
    """Format of the Redis URLs with one scheme."""

    text: str
    max_hosts: int
    path: re.Pattern[str]


# As browsers send it (RFC 6454, 6.2): lower case, without a path or the default port of the scheme.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DATABASE = re.compile(r"(/[0-9]*)?")
_REDIS_FORMATS = {
    "redis": _UrlFormat("redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]", 1, _DATABASE),
    "rediss": _UrlFormat("rediss://[USER:PASSWORD@]HOST[:PORT][/DATABASE]", 1, _DATABASE),
    "unix": _UrlFormat("unix://[USER:PASSWORD@]/PATH[?db=DATABASE]", 0, re.compile(r"/.+")),
}
# The schemes with TLS start with rediss.
for _redis in ("redis", "rediss"):
    _REDIS_FORMATS[f"{_redis}+sentinel"] = _UrlFormat(
        f"{_redis}+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DATABASE]",
        sys.maxsize,
        re.compile(r"/[A-Za-z0-9._-]+(/[0-9]+)?"),
    )
    # Redis Cluster supports only database 0.
    _REDIS_FORMATS[f"{_redis}+cluster"] = _UrlFormat(
        f"{_redis}+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]", sys.maxsize, re.compile(r"/?|/0")
    )


class RedisParts(NamedTuple):
    """The components of a Redis URL, as they are written in it."""

    scheme: str
    userinfo: str
    """``USER:PASSWORD@`` or empty."""
    hosts: str
    """``HOST[:PORT]``, separated by commas."""
    path: str
    query: str
    """``?OPTION=VALUE&...`` or empty."""


class RedisUrl(Secret[str]):
    """URL of Redis. Its text form masks passwords; ``get_secret_value()`` returns the URL to connect to."""

    def _display(self) -> str:
        url = self.get_secret_value()
        if url == EMBEDDED:
            return url
        parts = split_redis_url(url)
        if parts is None:
            return "***"
        userinfo = re.sub(r":.*@", ":***@", parts.userinfo)
        options = _SECRET_OPTION.sub(r"\1***", parts.query)
        return f"{parts.scheme}://{userinfo}{parts.hosts}{parts.path}{options}"

    @property
    def is_cluster(self) -> bool:
        """Whether the keys are spread over a Redis Cluster."""
        return self.get_secret_value().partition("://")[0].endswith("+cluster")


def redact(text: str) -> str:
    """Mask everything in a value that may be a password, in case a URL was given for the wrong setting."""
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub("://***@", text))


def check_redis_url(url: RedisUrl) -> RedisUrl:
    """Reject text that is not a supported Redis URL. The error never contains the URL."""
    text = url.get_secret_value()
    if text == EMBEDDED:
        return url
    format_ = _REDIS_FORMATS.get(text.partition("://")[0])
    if format_ is None:
        schemes = ", ".join(f"{scheme}://" for scheme in _REDIS_FORMATS)
        raise bad_setting(f"must be '{EMBEDDED}' or a URL that starts with one of {schemes}")
    parts = split_redis_url(text)
    if parts is None or not format_.path.fullmatch(parts.path) or not _are_hosts(parts.hosts, format_.max_hosts):
        raise bad_setting(f"must be {format_.text}, with special characters in a password written as %XX")
    return url


def split_redis_url(text: str) -> RedisParts | None:
    """Split a Redis URL into its components; return ``None`` for text that is not a URL."""
    match = _REDIS_URL.fullmatch(text)
    return match and RedisParts(*(part or "" for part in match.group("scheme", "userinfo", "hosts", "path", "query")))


def _are_hosts(text: str, max_hosts: int) -> bool:
    hosts = text.split(",") if text else []
    # Every scheme except unix:// needs a host: redis:///0 would silently mean localhost.
    return min(max_hosts, 1) <= len(hosts) <= max_hosts and all(split_host_port(host, default_port=0) for host in hosts)


class HostPort(NamedTuple):
    """A TCP address; an IPv6 host has no brackets."""

    host: str
    port: int


def split_host_port(text: str, *, default_port: int | None = None) -> HostPort | None:
    """Split ``HOST:PORT`` or ``[IPV6]:PORT``; return ``None`` for text of another format.

    Args:
        text: Text to split.
        default_port: Port to use if the text has none. Without it, a port is required.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        return None
    if match["ipv6"]:
        try:
            ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return None
    port = default_port if match["port"] is None else int(match["port"])
    if port is None or port > _MAX_PORT:
        return None
    return HostPort(match["ipv6"] or match["host"], port)


def check_tcp_address(text: str) -> str:
    """Reject text that is neither ``HOST:PORT`` nor ``[IPV6]:PORT``."""
    if split_host_port(text) is None:
        raise bad_setting("must be HOST:PORT or [IPV6]:PORT (0.0.0.0:PORT or [::]:PORT for all interfaces)")
    return text


def check_listen_address(text: str) -> str:
    """Reject text that is neither a TCP address nor ``unix:PATH``."""
    if text.startswith("unix:"):
        if text.removeprefix("unix:").strip("/"):
            return text
    elif split_host_port(text) is not None:
        return text
    raise bad_setting("must be HOST:PORT, [IPV6]:PORT or unix:PATH (0.0.0.0:PORT or [::]:PORT for all interfaces)")


def split_list(value: object) -> object:
    """Split text at commas; ``none`` is the empty list. Other values are returned as they are."""
    if not isinstance(value, str):
        return value
    return [] if value == "none" else [item.strip() for item in value.split(",")]


def check_host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Reject values that no ``Host`` header contains; the names are returned in lower case."""
    for name in names:
        parts = split_host_port(name, default_port=0)
        if name != "*" and (parts is None or parts.port or ":" in parts.host):
            raise bad_setting("must be host names such as registry.example.com, without a port, or *, or 'none'")
    return tuple(name.lower().rstrip(".") for name in names)


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Reject values that no browser sends as an ``Origin``."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise bad_setting("must be origins such as https://console.example.com, without a path, or *, or 'none'")
    return origins

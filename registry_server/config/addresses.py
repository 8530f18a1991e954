"""Where to listen and where Redis is: the two kinds of address in the settings, checked as far as text alone tells."""

import ipaddress
import re
import sys
from typing import NamedTuple

from pydantic import Secret
from pydantic_core import PydanticCustomError

EMBEDDED = "embedded"
"""Value of ``redis.url`` for a private redis-server of our own."""

_MAX_PORT = 65535
_HOST_PORT = re.compile(
    r"(?:\[(?P<ipv6>[^\s\[\]]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?))(?::(?P<port>[0-9]{1,5}))?"
)

# An unescaped '@', '/', '?' or '#' in a password would move part of it to where it is not masked, so each may stand
# only where it has a meaning of its own; a URL that does not match is never shown.
_REDIS_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://"
    r"(?P<userinfo>[^\s:/?#@]*(?::[^\s/?#@]*)?@)?"
    r"(?P<hosts>[^\s/?#@]*)(?P<path>/[^\s?#@]*)?(?P<query>\?[^\s#@]*)?"
)
_SECRET_OPTION = re.compile(r"(?i)(\b\w*(?:pass|secret|token)\w*=)[^&\s'\"]*")
_USERINFO = re.compile(r"://.*@")


def bad_setting(what: str, **context: object) -> PydanticCustomError:
    """Makes the error for a bad value (a ``ValueError`` would be shown as 'Value error, ...').

    Args:
        what: The rule, as 'must be ...'; ``{name}`` takes a value of the context.
        context: ``other`` is the key of another setting that the rule is about.
    """
    return PydanticCustomError("setting", what, context)


class _Form(NamedTuple):
    """What a Redis URL of one scheme must look like."""

    shape: str
    most_hosts: int
    path: re.Pattern[str]


# As browsers write it (RFC 6454, 6.2): lower case, no path, no port that is the scheme's own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DATABASE = re.compile(r"(/[0-9]*)?")
_REDIS_FORMS = {
    "redis": _Form("redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]", 1, _DATABASE),
    "rediss": _Form("rediss://[USER:PASSWORD@]HOST[:PORT][/DATABASE]", 1, _DATABASE),
    "unix": _Form("unix://[USER:PASSWORD@]/PATH[?db=DATABASE]", 0, re.compile(r"/.+")),
}
# With TLS the first word has an s more, as in rediss.
for _redis in ("redis", "rediss"):
    _REDIS_FORMS[f"{_redis}+sentinel"] = _Form(
        f"{_redis}+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DATABASE]",
        sys.maxsize,
        re.compile(r"/[A-Za-z0-9._-]+(/[0-9]+)?"),
    )
    # A cluster has only database 0.
    _REDIS_FORMS[f"{_redis}+cluster"] = _Form(
        f"{_redis}+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]", sys.maxsize, re.compile(r"/?|/0")
    )


class RedisParts(NamedTuple):
    """A Redis URL in parts, each as it stands in the URL."""

    scheme: str
    userinfo: str
    """``USER:PASSWORD@``, or nothing."""
    hosts: str
    """``HOST[:PORT]``, several with commas."""
    path: str
    query: str
    """``?OPTION=VALUE&...``, or nothing."""


class RedisUrl(Secret[str]):
    """URL of a Redis whose text form hides passwords; ``get_secret_value()`` gives the URL to connect with."""

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
    """Hides in a value whatever may be a password, for where a URL was given for the wrong setting."""
    return _SECRET_OPTION.sub(r"\1***", _USERINFO.sub("://***@", text))


def check_redis_url(url: RedisUrl) -> RedisUrl:
    """Refuses what is not a Redis URL of a known form; the reason never repeats the URL."""
    text = url.get_secret_value()
    if text == EMBEDDED:
        return url
    form = _REDIS_FORMS.get(text.partition("://")[0])
    if form is None:
        schemes = ", ".join(f"{scheme}://" for scheme in _REDIS_FORMS)
        raise bad_setting(f"must be '{EMBEDDED}' or a URL that starts with one of {schemes}")
    parts = split_redis_url(text)
    if parts is None or not form.path.fullmatch(parts.path) or not _are_hosts(parts.hosts, form.most_hosts):
        raise bad_setting(f"must be {form.shape}, with special characters in a password written as %XX")
    return url


def split_redis_url(text: str) -> RedisParts | None:
    """Splits a Redis URL of any scheme; ``None`` if it is none."""
    match = _REDIS_URL.fullmatch(text)
    return match and RedisParts(*(part or "" for part in match.group("scheme", "userinfo", "hosts", "path", "query")))


def _are_hosts(text: str, most: int) -> bool:
    hosts = text.split(",") if text else []
    # None at all is right only where none is allowed: redis:///0 would silently mean this machine.
    return min(most, 1) <= len(hosts) <= most and all(split_host_port(host, default_port=0) for host in hosts)


class HostPort(NamedTuple):
    """A TCP address; an IPv6 host stands without brackets."""

    host: str
    port: int


def split_host_port(text: str, *, default_port: int | None = None) -> HostPort | None:
    """Splits ``HOST:PORT`` or ``[IPV6]:PORT``.

    Args:
        text: What to split.
        default_port: Port where none is given; ``None`` makes it required.

    Returns:
        The parts, or ``None`` if the text has another form.
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
    """Refuses what is neither ``HOST:PORT`` nor ``[IPV6]:PORT``."""
    if split_host_port(text) is None:
        raise bad_setting("must be HOST:PORT or [IPV6]:PORT (0.0.0.0:PORT or [::]:PORT for all interfaces)")
    return text


def check_listen_address(text: str) -> str:
    """Refuses what is neither a TCP address nor ``unix:PATH``."""
    if text.startswith("unix:"):
        if text.removeprefix("unix:").strip("/"):
            return text
    elif split_host_port(text) is not None:
        return text
    raise bad_setting("must be HOST:PORT, [IPV6]:PORT or unix:PATH (0.0.0.0:PORT or [::]:PORT for all interfaces)")


def split_list(value: object) -> object:
    """Splits text at its commas; ``none`` is the empty list."""
    if not isinstance(value, str):
        return value
    return [] if value == "none" else [item.strip() for item in value.split(",")]


def check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses what no browser sends as the origin of a page."""
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise bad_setting("must be origins such as https://console.example.com, without a path, or *, or 'none'")
    return origins

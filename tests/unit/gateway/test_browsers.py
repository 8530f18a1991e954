"""Which requests of browsers are accepted."""

from collections.abc import Mapping

import pytest

from registry_server.config import HttpSettings
from registry_server.errors import PermissionDenied
from registry_server.gateway.browsers import BrowserRules

EVIL = "http://evil.example:3002"
SAME = {"Sec-Fetch-Site": "same-origin"}
OPEN_HOSTS = ("localhost", "localhost:3002", "LOCALHOST:1", "localhost.", "127.0.0.1:3002", "127.9.9.9", "[::1]:3002")
FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:3002",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.0.2.1:3002",
    "[2001:db8::1]",
    "0.0.0.0",
    "a b",
    "user@localhost",
    "localhost:x",
    "\udcff",
)


def accepts(
    host: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    *,
    credential: bool = False,
    **http: object,
) -> bool:
    settings = HttpSettings.model_validate(http)
    try:
        BrowserRules(settings, needs_credential=credential).check(method, {"Host": host, **(headers or {})})
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize("host", OPEN_HOSTS)
def test_loopback_names_are_accepted(host: str) -> None:
    assert accepts(host)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_other_hosts_are_rejected_where_no_credential_is_needed(host: str) -> None:
    assert not accepts(host)
    assert accepts(host, credential=True)
    assert accepts(host, address="0.0.0.0:3002")
    assert accepts(host, allowed_hosts="*")


def test_allowed_hosts_are_checked_on_every_address() -> None:
    for http in ({}, {"address": "0.0.0.0:3002"}, {"address": "registry.internal:3002"}):
        for credential in (True, False):
            allowed = {**http, "allowed_hosts": "registry.example.com", "credential": credential}
            assert accepts("registry.example.com:443", **allowed)  # type: ignore[arg-type]
            assert accepts("localhost:3002", **allowed)  # type: ignore[arg-type]
            assert not accepts("evil.example", **allowed)  # type: ignore[arg-type]
    assert accepts("registry.internal:3002", address="registry.internal:3002", allowed_hosts="other.example")
    # Probes of a kubelet use the address of the pod.
    assert accepts("10.1.2.3:3002", address="0.0.0.0:3002", allowed_hosts="registry.example.com")


def test_requests_without_host_come_from_no_browser() -> None:
    assert accepts("")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
def test_other_origins_are_rejected(method: str) -> None:
    for origin in (EVIL, "null", "http://localhost:1", "https://localhost.evil.example:3002", ""):
        assert not accepts("localhost:3002", method, {"Origin": origin})
        assert accepts("localhost:3002", method, {"Origin": origin}, cors_origins="*")
    assert accepts("localhost:3002", method, {"Origin": EVIL}, cors_origins=EVIL)
    assert accepts("localhost:3002", method, {"Origin": "http://localhost:3002"})
    assert accepts("localhost:3002", method, {"Origin": "http://localhost:3002", **SAME})
    assert accepts("localhost:3002", method, {"Sec-Fetch-Site": "none"})


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unknown"])
def test_cross_site_writes_are_rejected_everywhere(site: str) -> None:
    for http in ({}, {"credential": True}, {"address": "0.0.0.0:3002", "credential": True}):
        for headers in ({}, {"Origin": EVIL}):
            sent = {"Sec-Fetch-Site": site, **headers}
            assert not accepts("localhost", "POST", sent, **http)
    assert accepts("localhost", "POST", {"Sec-Fetch-Site": site, "Origin": EVIL}, cors_origins=EVIL)
    assert accepts("localhost", "GET", {"Sec-Fetch-Site": site}), "a link to a page"


def test_reads_of_other_origins_need_a_credential_that_pages_lack() -> None:
    assert accepts("registry.example.com", "GET", {"Origin": EVIL}, credential=True)
    assert not accepts("registry.example.com", "POST", {"Origin": EVIL}, credential=True)
    assert accepts("registry.example.com", "POST", {"Origin": "https://registry.example.com"}, credential=True)


def test_a_proxy_may_add_the_default_port_that_browsers_omit() -> None:
    for origin, port in (("https://registry.example.com", "443"), ("http://registry.example.com", "80")):
        assert accepts(f"registry.example.com:{port}", "POST", {"Origin": origin}, credential=True)
    for origin, port in (("https://registry.example.com", "80"), ("http://registry.example.com", "443")):
        assert not accepts(f"registry.example.com:{port}", "POST", {"Origin": origin}, credential=True)


@pytest.mark.parametrize(
    ("host", "name"), [("build-box:3002", "build-box"), ("build-box", "build-box"), ("[2001:db8::1]", "2001:db8::1")]
)
def test_the_error_names_the_host_as_the_setting_accepts_it(host: str, name: str) -> None:
    with pytest.raises(PermissionDenied, match=f"not known as '{name}'"):
        BrowserRules(HttpSettings(), needs_credential=False).check("GET", {"Host": host})


def test_preflights_are_left_to_the_browser() -> None:
    assert accepts("localhost", "OPTIONS", {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"})
    assert not accepts("evil.example", "OPTIONS", {"Origin": EVIL})

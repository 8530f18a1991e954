"""Plans: how a service is probed."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings
from registry_server.probes import Plan

DEFAULTS = HealthCheckSettings()


def plan(endpoint: str, check: dict[str, Any] | None = None, defaults: HealthCheckSettings = DEFAULTS) -> Plan:
    service = Service(name="a", endpoint=endpoint, version="1.0.0")
    if check is not None:
        ParseDict(check, service.health_check)
    return Plan.of(service, defaults)


@pytest.mark.parametrize(
    ("endpoint", "kind", "host", "port", "tls"),
    [
        ("http://agent.test", "http", "agent.test", 80, False),
        ("https://agent.test", "http", "agent.test", 443, True),
        ("grpc://agent.test", "grpc", "agent.test", 80, False),
        ("grpcs://agent.test", "grpc", "agent.test", 443, True),
        ("ws://agent.test", "tcp", "agent.test", 80, False),
        ("wss://agent.test", "tcp", "agent.test", 443, True),
        ("tcp://agent.test:6379", "tcp", "agent.test", 6379, False),
        ("mcp://agent.test:9000", "tcp", "agent.test", 9000, False),
        ("http://agent.test:8080/base", "http", "agent.test", 8080, False),
        ("http://[::1]:8080", "http", "::1", 8080, False),
        ("grpcs://10.0.0.1:50051", "grpc", "10.0.0.1", 50051, True),
        ("HTTPS://Agent.Test", "http", "agent.test", 443, True),
    ],
)
def test_scheme_determines_kind_port_and_tls(
    endpoint: str,
    kind: str,
    host: str,
    port: int,
    tls: bool,  # noqa: FBT001 - a table
) -> None:
    result = plan(endpoint)
    assert (result.kind, result.host, result.port, result.tls) == (kind, host, port, tls)
    assert result.probed


@pytest.mark.parametrize(
    ("endpoint", "path", "url"),
    [
        ("http://agent.test", "", "http://agent.test/health"),
        ("http://agent.test/", "", "http://agent.test/health"),
        ("http://agent.test:8080/base", "", "http://agent.test:8080/base/health"),
        ("http://agent.test/base/", "", "http://agent.test/base/health"),
        ("http://agent.test/base//", "", "http://agent.test/base/health"),
        ("http://agent.test/a/b?x=1#top", "", "http://agent.test/a/b/health"),
        ("http://agent.test?x=1", "", "http://agent.test/health"),
        ("http://agent.test#top", "", "http://agent.test/health"),
        ("http://agent.test/base", "/ready?deep=1", "http://agent.test/base/ready?deep=1"),
        ("http://agent.test/base", "/", "http://agent.test/base/"),
        ("http://agent.test/%7Ea", "/%20b", "http://agent.test/%7Ea/%20b"),
        ("https://[::1]:8443/base", "/ready", "https://[::1]:8443/base/ready"),
        ("grpc://agent.test:50051", "/ready", "http://agent.test:50051/ready"),
        ("wss://agent.test/socket", "/ready", "https://agent.test/socket/ready"),
        ("tcp://agent.test:80", "/ready", "http://agent.test:80/ready"),
    ],
)
def test_path_is_appended_to_the_endpoint(endpoint: str, path: str, url: str) -> None:
    assert plan(endpoint, {"http": {"path": path}}).url == url


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        ({"http": {}}, "http"),
        ({"grpc": {}}, "grpc"),
        ({"tcp": {}}, "tcp"),
        ({"heartbeat": {}}, "heartbeat"),
        ({"none": {}}, "none"),
        ({"interval": "9s"}, "http"),
    ],
)
def test_configured_kind_takes_precedence_over_the_scheme(check: dict[str, Any], kind: str) -> None:
    assert plan("http://agent.test", check).kind == kind


def test_endpoint_that_cannot_be_probed_needs_heartbeats() -> None:
    assert plan("mcp://agent.test").kind == "heartbeat"
    assert plan("mcp://agent.test", {"interval": "10s"}).kind == "heartbeat"
    assert plan("mcp://agent.test", {"tcp": {}}).kind == "tcp"


@pytest.mark.parametrize("kind", ["heartbeat", "none"])
def test_heartbeats_and_reports_need_no_probe(kind: str) -> None:
    assert not plan("http://agent.test", {kind: {}}).probed


def test_unset_fields_have_the_defaults_of_the_server() -> None:
    defaults = HealthCheckSettings(interval_ms=7_000, timeout_ms=1_500, failure_threshold=4, success_threshold=6)
    result = plan("http://agent.test", None, defaults)
    assert (result.interval, result.timeout) == (7.0, 1.5)
    assert (result.failure_threshold, result.success_threshold) == (4, 6)
    assert result.degraded_after is None
    assert (result.method, result.headers, result.expected_statuses) == ("GET", (), frozenset())


def test_set_fields_override_the_defaults() -> None:
    result = plan(
        "http://agent.test",
        {
            "http": {"method": "POST", "headers": {"X-B": "2", "X-A": "1"}, "expectedStatuses": [204, 301, 204]},
            "interval": "10s",
            "timeout": "0.250s",
            "failureThreshold": 1,
            "successThreshold": 9,
            "degradedAfter": "0.001500s",
        },
    )
    assert (result.interval, result.timeout, result.degraded_after) == (10.0, 0.25, 0.0015)
    assert (result.failure_threshold, result.success_threshold) == (1, 9)
    assert (result.method, result.expected_statuses) == ("POST", frozenset({204, 301}))
    assert result.headers == (("X-A", "1"), ("X-B", "2"))


@pytest.mark.parametrize(
    ("expected", "status", "success"),
    [
        ([], 200, True),
        ([], 204, True),
        ([], 299, True),
        ([], 199, False),
        ([], 300, False),
        ([503], 503, True),
        ([503], 200, False),
    ],
)
def test_any_2xx_is_a_success_unless_statuses_are_configured(
    expected: list[int],
    status: int,
    success: bool,  # noqa: FBT001 - a table
) -> None:
    assert plan("http://agent.test", {"http": {"expectedStatuses": expected}}).expects(status) is success


def test_grpc_plan_has_service_and_authority() -> None:
    result = plan("grpc://agent.test:50051", {"grpc": {"service": "acme.v1.Chat"}})
    assert (result.grpc_service, result.authority) == ("acme.v1.Chat", "agent.test:50051")
    assert plan("grpc://agent.test").authority == "agent.test"


@pytest.mark.parametrize(
    ("check", "timeout"),
    [({"interval": "2s"}, 2.0), ({"interval": "2s", "timeout": "1s"}, 1.0), ({"timeout": "60s"}, 30.0)],
)
def test_timeout_is_at_most_the_interval(check: dict[str, Any], timeout: float) -> None:
    assert plan("http://agent.test", check).timeout == timeout


def test_plan_changes_only_with_the_endpoint_or_the_check() -> None:
    check: dict[str, Any] = {"http": {"headers": {"B": "1", "A": "2"}, "expectedStatuses": [200, 204]}}
    again: dict[str, Any] = {"http": {"headers": {"A": "2", "B": "1"}, "expectedStatuses": [204, 200]}}
    first = plan("http://agent.test", check)
    assert first == plan("http://agent.test", again)
    assert hash(first) == hash(plan("http://agent.test", again))
    for endpoint, other in (
        ("http://agent.test:81", check),
        ("https://agent.test", check),
        ("http://agent.test/base", check),
        ("http://agent.test", check | {"interval": "9s"}),
        ("http://agent.test", check | {"degradedAfter": "1s"}),
        ("http://agent.test", check | {"failureThreshold": 9}),
        ("http://agent.test", {"http": {"headers": {"B": "1", "A": "3"}, "expectedStatuses": [200, 204]}}),
        ("http://agent.test", {"tcp": {}}),
    ):
        assert plan(endpoint, other) != first, (endpoint, other)


def test_fields_that_do_not_affect_probes_do_not_change_the_plan() -> None:
    first = Service(name="a", endpoint="http://agent.test", version="1.0.0")
    second = Service(name="a", endpoint="http://agent.test", version="2.0.0", ttl=Duration(seconds=9), group="g")
    assert Plan.of(first, DEFAULTS) == Plan.of(second, DEFAULTS)


@pytest.mark.parametrize(
    "endpoint", ["", "http://", "http:///health", "agent.test", "http://[::1", "http://a:b", "tcp://a:99999"]
)
def test_invalid_endpoint_results_in_a_plan_without_a_host(endpoint: str) -> None:
    result = plan(endpoint)
    assert result.probed
    assert result.host == ""


@given(st.text())
def test_no_endpoint_raises(endpoint: str) -> None:
    plan(endpoint)
    plan("http://" + endpoint)

"""Settings: sources, precedence and error messages."""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from pydantic import ValidationError

from registry_server.config import RedisSettings, RedisUrl, Settings, load_settings, usage
from registry_server.config.sources import SETTINGS, Setting
from registry_server.errors import ConfigurationError

# Key: (default, another value as text, the parsed value).
TABLE: dict[str, tuple[object, str, object]] = {
    "service_ttl_seconds": (300, "60", 60),
    "workers": (1, "1", 1),
    "insecure": (False, "true", True),
    "data_dir": (None, "/srv/registry", Path("/srv/registry")),
    "grpc.address": ("127.0.0.1:50051", "[::]:0", "[::]:0"),
    "grpc.max_message_bytes": (4194304, "65536", 65536),
    "grpc.reflection": (True, "false", False),
    "grpc.keepalive_time_ms": (30000, "1000", 1000),
    "grpc.keepalive_timeout_ms": (10000, "1001", 1001),
    "grpc.min_ping_interval_ms": (5000, "1002", 1002),
    "grpc.max_metadata_bytes": (16384, "8192", 8192),
    "grpc.max_concurrent_streams": (10000, "5", 5),
    "grpc.write_timeout_ms": (30000, "5", 5),
    "http.address": ("127.0.0.1:3002", "localhost:80", "localhost:80"),
    "http.cors_origins": ((), "https://a.test,http://b.test:8080", ("https://a.test", "http://b.test:8080")),
    "http.allowed_hosts": ((), "a.test,B.test.", ("a.test", "b.test")),
    "http.max_connections": (10000, "500", 500),
    "http.max_body_bytes": (1048576, "65536", 65536),
    "http.max_headers": (100, "50", 50),
    "http.max_header_bytes": (16384, "4096", 4096),
    "http.header_timeout_ms": (10000, "1005", 1005),
    "http.write_timeout_ms": (30000, "1003", 1003),
    "http.events_keep_alive_ms": (15000, "1004", 1004),
    "redis.url": (RedisUrl("embedded"), "redis://h:1/2", RedisUrl("redis://h:1/2")),
    "redis.key_prefix": ("ossa:services", "a", "a"),
    "redis.tls_ca_file": (None, "/etc/ca.pem", Path("/etc/ca.pem")),
    "redis.tls_cert_file": (None, "none", None),
    "redis.tls_key_file": (None, "none", None),
    "redis.timeout_ms": (2000, "3000", 3000),
    "redis.wait_replicas": (0, "0", 0),
    "redis.wait_timeout_ms": (1000, "1500", 1500),
    "redis.repair": (True, "false", False),
    "redis.events_max_length": (10000, "100", 100),
    "redis.events_max_age": (86_400, "0", 0),
    "tls.cert_file": (None, "none", None),
    "tls.key_file": (None, "none", None),
    "tls.client_ca_file": (None, "none", None),
    "tls.http_client_certificates": ("required", "optional", "optional"),
    "security.policy_file": (None, "/etc/policy.yaml", Path("/etc/policy.yaml")),
    "security.public": (("health", "docs", "reflection"), "metrics,health", ("metrics", "health")),
    "limits.requests_per_second": (10000, "5", 5),
    "limits.request_burst": (20000, "6", 6),
    "limits.watches_per_caller": (5000, "7", 7),
    "limits.watches": (30000, "8", 8),
    "limits.calls": (10000, "9", 9),
    "limits.call_bytes": (134217728, "1048576", 1048576),
    "limits.services_per_owner": (10000, "9", 9),
    "limits.unauthenticated_calls": (1_000, "5", 5),
    "limits.change_bytes_per_second": (131072, "2048", 2048),
    "limits.stream_idle_seconds": (36000, "60", 60),
    "health_check.enabled": (True, "false", False),
    "health_check.interval_ms": (30000, "5000", 5000),
    "health_check.timeout_ms": (5000, "30000", 30000),
    "health_check.failure_threshold": (3, "1", 1),
    "health_check.success_threshold": (2, "1", 1),
    "health_check.concurrency": (1_000, "1", 1),
    "health_check.member_period_ms": (5000, "100", 100),
    "health_check.allowed_networks": ((), "10.0.0.0/8, ::1", (IPv4Network("10.0.0.0/8"), IPv6Network("::1/128"))),
    "health_check.denied_networks": ((), "127.0.0.1", (IPv4Network("127.0.0.1/32"),)),
    "health_check.self_preservation_percent": (50, "100", 100),
    "health_check.self_preservation_min_failures": (10, "1", 1),
    "health_check.self_preservation_max_seconds": (300, "1", 1),
    "lease.sweep_interval_ms": (1000, "20", 20),
    "watch.history_seconds": (60, "0", 0),
    "watch.buffer_events": (10000, "1", 1),
    "watch.buffer_bytes": (8388608, "131072", 131072),
    "log.level": ("info", "debug", "debug"),
    "log.format": ("auto", "json", "json"),
    "log.requests": ("errors", "all", "all"),
    "log.audit": ("log", "/var/log/ossa/audit.log", "/var/log/ossa/audit.log"),
    "trace.enabled": (False, "true", True),
    "shutdown.grace_seconds": (10, "0", 0),
}
BY_KEY = {setting.key: setting for setting in SETTINGS}


def value_of(settings: Settings, setting: Setting) -> object:
    value: object = settings
    for name in setting.path:
        value = getattr(value, name)
    return value


def errors_of(args: list[str], environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(args, environ or {})
    return str(caught.value).splitlines()


def toml_file(directory: Path, text: str) -> str:
    file = directory / "registry.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_table_contains_every_setting() -> None:
    assert sorted(BY_KEY) == sorted(TABLE)


@pytest.mark.parametrize("key", sorted(TABLE.keys() - {"data_dir"}))
def test_default_is_used_without_a_source(key: str) -> None:
    settings = load_settings([], {})
    assert value_of(settings, BY_KEY[key]) == TABLE[key][0]
    assert settings == Settings()


def test_default_data_directory_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert load_settings([], {}).data_dir.name == "ossa-registry"
    assert load_settings([], {}).data_dir.is_relative_to(tmp_path)
    assert load_settings(["--data-dir", "~/x"], {}).data_dir == tmp_path / "x"


@pytest.mark.parametrize("key", TABLE)
def test_every_setting_can_be_set_by_flag(key: str) -> None:
    setting, (_, text, value) = BY_KEY[key], TABLE[key]
    assert value_of(load_settings([setting.flag, text], {}), setting) == value
    assert value_of(load_settings([f"{setting.flag}={text}"], {}), setting) == value


@pytest.mark.parametrize("key", TABLE)
def test_every_setting_can_be_set_in_the_environment(key: str) -> None:
    setting, (_, text, value) = BY_KEY[key], TABLE[key]
    assert value_of(load_settings([], {setting.variable: text}), setting) == value


@pytest.mark.parametrize("key", TABLE)
def test_every_setting_can_be_set_in_the_file(key: str, tmp_path: Path) -> None:
    setting, (_, text, value) = BY_KEY[key], TABLE[key]
    written = text if isinstance(value, int) else f'"{text}"'
    file = toml_file(tmp_path, f"{key} = {written}")
    assert value_of(load_settings(["--config", file], {}), setting) == value


@pytest.mark.parametrize(
    ("key", "flag", "variable"),
    [
        ("grpc.address", "--grpc.address", "OSSA_REGISTRY_GRPC__ADDRESS"),
        ("health_check.interval_ms", "--health-check.interval-ms", "OSSA_REGISTRY_HEALTH_CHECK__INTERVAL_MS"),
        ("service_ttl_seconds", "--service-ttl-seconds", "OSSA_REGISTRY_SERVICE_TTL_SECONDS"),
    ],
)
def test_names_of_flags_and_variables_follow_the_contract(key: str, flag: str, variable: str) -> None:
    assert (BY_KEY[key].flag, BY_KEY[key].variable) == (flag, variable)


@pytest.mark.parametrize(
    ("flag", "variable", "file", "expected"),
    [
        (None, None, None, "info"),
        (None, None, "debug", "debug"),
        (None, "warning", None, "warning"),
        (None, "warning", "debug", "warning"),
        ("error", None, "debug", "error"),
        ("error", "warning", None, "error"),
        ("error", "warning", "debug", "error"),
    ],
)
def test_flag_overrides_environment_and_environment_overrides_file(
    flag: str | None, variable: str | None, file: str | None, expected: str, tmp_path: Path
) -> None:
    args = [f"--log.level={flag}"] if flag else []
    if file:
        args += ["--config", toml_file(tmp_path, f'log.level = "{file}"')]
    environ = {"OSSA_REGISTRY_LOG__LEVEL": variable} if variable else {}
    assert load_settings(args, environ).log.level == expected


def test_settings_of_one_group_can_come_from_several_sources(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "[health_check]\ninterval_ms = 1000\ntimeout_ms = 500\nfailure_threshold = 7")
    environ = {"OSSA_REGISTRY_HEALTH_CHECK__TIMEOUT_MS": "600"}
    got = load_settings(["--config", file, "--health-check.success-threshold", "9"], environ).health_check
    assert (got.interval_ms, got.timeout_ms, got.failure_threshold, got.success_threshold) == (1000, 600, 7, 9)


def test_config_flag_overrides_the_config_variable(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "service_ttl_seconds = 60")
    assert load_settings([], {"OSSA_REGISTRY_CONFIG": file}).service_ttl_seconds == 60
    assert load_settings([f"--config={file}"], {"OSSA_REGISTRY_CONFIG": "missing.toml"}).service_ttl_seconds == 60


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "on"])
def test_true_can_be_written_in_the_usual_ways(text: str) -> None:
    environ = {"OSSA_REGISTRY_GRPC__REFLECTION": "false"}
    assert load_settings(["--grpc.reflection", text], environ).grpc.reflection


def test_boolean_flag_needs_no_value() -> None:
    environ = {"OSSA_REGISTRY_GRPC__REFLECTION": "false", "OSSA_REGISTRY_HEALTH_CHECK__ENABLED": "false"}
    settings = load_settings(["--grpc.reflection", "--health-check.enabled"], environ)
    assert settings.grpc.reflection
    assert settings.health_check.enabled


def test_last_of_several_equal_flags_wins() -> None:
    assert load_settings(["--log.level=debug", "--log.level=error"], {}).log.level == "error"


def test_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me", "OSSA_REGISTRY_SERVICE_TTL_SECONDS": "77"})
    assert load_settings().service_ttl_seconds == 77
    assert load_settings([], {}).service_ttl_seconds == 300
    assert Settings().service_ttl_seconds == 300


def test_settings_are_immutable() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.workers = 2
    with pytest.raises(ValidationError, match="frozen"):
        settings.grpc.reflection = False


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        (["--grpc.adress", "h:1"], {}, "--grpc.adress: unknown flag; did you mean --grpc.address?"),
        (["--grpc-address=h:1"], {}, "--grpc-address: unknown flag; did you mean --grpc.address?"),
        (["--conf", "x"], {}, "--conf: unknown flag; did you mean --config?"),
        (["--zebra"], {}, "--zebra: unknown flag"),
        (["-w", "2"], {}, "-w: unknown flag"),
        (["start"], {}, "start: unexpected argument"),
        (["--log.level"], {}, "--log.level: needs a value"),
        (["--config"], {}, "--config: needs a value"),
        (["--log.level", "--grpc.reflection"], {}, "--log.level: needs a value"),
        (["--config="], {}, "--config: must be the path of a TOML file, not ''"),
        (["--config", "no.toml"], {}, "--config: cannot read 'no.toml': No such file or directory"),
        ([], {"OSSA_REGISTRY_CONFIG": "/"}, "OSSA_REGISTRY_CONFIG: cannot read '/': Is a directory"),
        ([], {"OSSA_REGISTRY_ZEBRA": "1"}, "OSSA_REGISTRY_ZEBRA: unknown variable"),
        ([], {"OSSA_REGISTRY_GRPC": "{}"}, "OSSA_REGISTRY_GRPC: unknown variable"),
        (
            [],
            {"OSSA_REGISTRY_REDIS_URL": "redis://h"},
            "OSSA_REGISTRY_REDIS_URL: unknown variable; did you mean OSSA_REGISTRY_REDIS__URL?",
        ),
    ],
)
def test_unknown_or_empty_name_is_an_error(args: list[str], environ: dict[str, str], expected: str) -> None:
    assert errors_of(args, environ) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grpc.adress = 'h:1'", "grpc.adress in {file}: unknown setting; did you mean grpc.address?"),
        ("[gprc]\naddress = 'h:1'", "gprc in {file}: unknown setting; did you mean grpc?"),
        ("[log]\n'for mat' = 1", 'log."for mat" in {file}: unknown setting; did you mean log.format?'),
        ("config = 'x'", "config in {file}: unknown setting"),
        ("grpc = 5", "grpc in {file}: must be a table"),
        ("[[grpc]]\naddress = 'h:1'", "grpc in {file}: must be a table"),
        ("[workers]\nx = 1", "workers in {file}: must be a whole number, not a table"),
        ("workers = true", "workers in {file}: must be a whole number, not True"),
        ("workers = 1.5", "workers in {file}: must be a whole number, not 1.5"),
        ("grpc.address = 50051", "grpc.address in {file}: must be text, not 50051"),
        ("data_dir = 5", "data_dir in {file}: must be the path of a directory, not 5"),
        ("grpc.reflection = 'maybe'", "grpc.reflection in {file}: must be true or false, not 'maybe'"),
        ("grpc.reflection = []", "grpc.reflection in {file}: must be true or false, not []"),
        ("a = ", "--config: '{file}' is not a TOML file: Invalid value (at end of document)"),
    ],
)
def test_invalid_file_is_an_error(text: str, expected: str, tmp_path: Path) -> None:
    file = toml_file(tmp_path, text)
    assert errors_of(["--config", file]) == [expected.format(file=file)]


def test_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_bytes(b"a = '\xff'")
    assert errors_of(["--config", str(file)]) == [f"--config: '{file}' is not UTF-8 text: invalid start byte at byte 5"]


KEY_PREFIX_RULE = "must be 1 to 128 characters of A-Z a-z 0-9 { } . _ : / - without a colon at the end"
LISTEN_RULE = "must be HOST:PORT, [IPV6]:PORT or unix:PATH (0.0.0.0:PORT or [::]:PORT for all interfaces)"
ORIGIN_RULE = "must be origins such as https://console.example.com, without a path, or *, or 'none'"
TCP_RULE = "must be HOST:PORT or [IPV6]:PORT (0.0.0.0:PORT or [::]:PORT for all interfaces)"


@pytest.mark.parametrize(
    ("key", "text", "rule"),
    [
        ("service_ttl_seconds", "4", "must be at least 5"),
        ("service_ttl_seconds", "86401", "must be at most 86400"),
        ("service_ttl_seconds", "5m", "must be a whole number"),
        ("service_ttl_seconds", "", "must be a whole number"),
        ("service_ttl_seconds", "9" * 30, "must be at most 86400"),
        ("workers", "0", "must be at least 1"),
        ("workers", "257", "must be at most 256"),
        ("data_dir", "", "must be the path of a directory"),
        ("data_dir", "~no-such-user/x", "must be the path of a directory"),
        ("grpc.max_message_bytes", "65535", "must be at least 65536"),
        ("grpc.max_message_bytes", "67108865", "must be at most 67108864"),
        ("grpc.keepalive_time_ms", "0", "must be at least 1"),
        ("grpc.reflection", "maybe", "must be true or false"),
        ("redis.events_max_length", "99", "must be at least 100"),
        ("health_check.timeout_ms", "30001", "must be at most health_check.interval_ms (30000)"),
        ("watch.buffer_bytes", "65536", "must be at least 131072"),
        ("log.level", "trace", "must be 'debug', 'info', 'warning' or 'error'"),
        ("log.format", "xml", "must be 'auto', 'console' or 'json'"),
        ("shutdown.grace_seconds", "-1", "must be at least 0"),
        *[("redis.key_prefix", text, KEY_PREFIX_RULE) for text in ("", "a:", "a b", "a*", "é", "a\n", "x" * 129)],
        *[
            ("grpc.address", text, LISTEN_RULE)
            for text in ("", "h", ":1", "h:", "h:x", "h:65536", "h:1:2", "::1:1", "[::1]", "[x]:1", "a b:1", "unix:")
        ],
        *[
            ("http.cors_origins", text, ORIGIN_RULE)
            for text in (
                "",
                "a.test",
                "https://a.test/",
                "https://a.test,",
                "https://*.test",
                "null",
                "https://a.test:x",
            )
        ],
        *[("http.address", text, TCP_RULE) for text in ("", "3002", "*:1", "http://h:1", "unix:/x", "[::1]1")],
    ],
)
def test_invalid_value_is_reported_under_the_name_that_the_user_wrote(
    key: str, text: str, rule: str, tmp_path: Path
) -> None:
    setting = BY_KEY[key]
    shown = repr(text) if len(repr(text)) <= 80 else repr(text)[:77] + "..."
    error = f"{rule}, not {shown}"
    assert errors_of([f"{setting.flag}={text}"]) == [f"{setting.flag}: {error}"]
    assert errors_of([], {setting.variable: text}) == [f"{setting.variable}: {error}"]
    written = text.replace("\n", "\\n")
    file = toml_file(tmp_path, f'{key} = "{written}"')
    assert errors_of(["--config", file]) == [f"{key} in {file}: {error}"]


def test_origins_can_be_a_list_in_the_file(tmp_path: Path) -> None:
    file = toml_file(tmp_path, 'http.cors_origins = ["https://a.test", "http://[::1]:8080"]')
    assert load_settings(["--config", file], {}).http.cors_origins == ("https://a.test", "http://[::1]:8080")
    assert load_settings(["--config", file, "--http.cors-origins=none"], {}).http.cors_origins == ()
    assert load_settings(["--http.cors-origins=*"], {}).http.cors_origins == ("*",)


@pytest.mark.parametrize("address", ["h:1", "127.0.0.1:0", "a-b.c_d.:65535", "[::1]:1", "[fe80::1%eth0]:1"])
def test_valid_addresses_are_accepted(address: str) -> None:
    assert load_settings(["--grpc.address", address], {}).grpc.address == address
    host, _, port = address.rpartition(":")
    got = load_settings(["--http.address", address], {}).http.host_port
    assert got == (host.strip("[]"), int(port))


@pytest.mark.parametrize("address", ["unix:/run/ossa.sock", "unix:ossa.sock", "unix:///run/ossa.sock"])
def test_grpc_can_listen_on_a_unix_socket(address: str) -> None:
    assert load_settings(["--grpc.address", address], {}).grpc.address == address


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "colour = 1\nservice_ttl_seconds = 1")
    environ = {"OSSA_REGISTRY_LOG__LEVEL": "x", "OSSA_REGISTRY_FOO": "1"}
    errors = errors_of(["--config", file, "--workers=0", "--foo"], environ)
    assert [error.split(": ")[0] for error in errors] == [
        "--foo",
        "OSSA_REGISTRY_FOO",
        f"colour in {file}",
        f"service_ttl_seconds in {file}",
        "--workers",
        "OSSA_REGISTRY_LOG__LEVEL",
    ]


def test_short_interval_reduces_the_default_timeout() -> None:
    assert load_settings(["--health-check.interval-ms", "1000"], {}).health_check.timeout_ms == 1000


def test_timeout_above_the_interval_is_an_error_with_both_names() -> None:
    given = ["--health-check.interval-ms", "1000", "--health-check.timeout-ms", "2000"]
    assert errors_of(given) == [
        "--health-check.timeout-ms: must be at most --health-check.interval-ms (1000), not '2000'"
    ]


def test_short_redis_timeout_reduces_the_default_wait_timeout() -> None:
    assert load_settings(["--redis.timeout-ms", "300"], {}).redis.wait_timeout_ms == 150


def test_wait_timeout_above_the_redis_timeout_is_an_error_with_both_names() -> None:
    given = ["--redis.timeout-ms", "300", "--redis.wait-timeout-ms", "300"]
    assert errors_of(given) == ["--redis.wait-timeout-ms: must be less than --redis.timeout-ms (300), not '300'"]


def test_timeouts_that_equal_their_default_are_honoured() -> None:
    wait = ["--redis.wait-timeout-ms", "1000"]
    assert load_settings(["--redis.timeout-ms", "1500", *wait], {}).redis.wait_timeout_ms == 1000
    assert errors_of(["--redis.timeout-ms", "500", *wait]) == [
        "--redis.wait-timeout-ms: must be less than --redis.timeout-ms (500), not '1000'"
    ]
    assert errors_of(["--health-check.interval-ms", "2000", "--health-check.timeout-ms", "5000"]) == [
        "--health-check.timeout-ms: must be at most --health-check.interval-ms (2000), not '5000'"
    ]
    with pytest.raises(ValidationError):
        RedisSettings(timeout_ms=500, wait_timeout_ms=1000)


def test_shortest_redis_timeout_is_valid() -> None:
    assert load_settings(["--redis.timeout-ms", "1"], {}).redis.wait_timeout_ms == 1
    assert errors_of(["--redis.timeout-ms", "1", "--redis.wait-timeout-ms", "2"]) == [
        "--redis.wait-timeout-ms: must be less than --redis.timeout-ms (1), not '2'"
    ]


def test_waiting_for_replicas_of_the_embedded_redis_is_an_error() -> None:
    rule = "must be 0 for the embedded Redis of redis.url, which has no replicas, not '1'"
    assert errors_of(["--redis.wait-replicas", "1"]) == [f"--redis.wait-replicas: {rule}"]
    url = ["--redis.url", "redis://h", "--redis.wait-replicas", "1"]
    assert load_settings(url, {}).redis.wait_replicas == 1


def test_cluster_requires_a_key_prefix_with_one_hash_tag() -> None:
    for scheme in ("redis", "rediss"):
        assert errors_of(["--redis.url", f"{scheme}+cluster://h"]) != []
    url = {"OSSA_REGISTRY_REDIS__URL": "redis+cluster://:hunter2@h:7000,i:7000"}
    rule = "must have one hash tag, as in '{ossa}:services', for the Redis Cluster of OSSA_REGISTRY_REDIS__URL"
    assert errors_of([], url) == [f"redis.key_prefix (default): {rule}, not 'ossa:services'"]
    for bad in ("a:{}", "{a}:{b}", "{a", "a}", "}a{"):
        assert errors_of([f"--redis.key-prefix={bad}"], url) == [f"--redis.key-prefix: {rule}, not {bad!r}"]
    for good in ("{ossa}:services", "a:{b}"):
        assert load_settings([f"--redis.key-prefix={good}"], url).redis.key_prefix == good


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("embedded", "embedded"),
        ("redis://h", "redis://h"),
        ("rediss://:hunter2@h:6379/0", "rediss://:***@h:6379/0"),
        ("redis://me:hunter2@[::1]:6379/5?protocol=3", "redis://me:***@[::1]:6379/5?protocol=3"),
        ("redis://h/?password=hunter2&protocol=3", "redis://h/?password=***&protocol=3"),
        ("redis://me@h", "redis://me@h"),
        ("redis://me:hunter2%40%2F:x@h", "redis://me:***@h"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("unix://me:hunter2@/run/redis.sock", "unix://me:***@/run/redis.sock"),
        ("redis+sentinel://:hunter2@a:26379,b/main", "redis+sentinel://:***@a:26379,b/main"),
        ("redis+sentinel://a/main/3?sentinel_password=hunter2", "redis+sentinel://a/main/3?sentinel_password=***"),
        ("rediss+sentinel://me:hunter2@a/main", "rediss+sentinel://me:***@a/main"),
        (
            "redis+sentinel://:hunter2@a/main?sentinel_username=me&sentinel_password=hunter2",
            "redis+sentinel://:***@a/main?sentinel_username=me&sentinel_password=***",
        ),
        ("rediss+cluster://:hunter2@a", "rediss+cluster://:***@a"),
        ("redis+cluster://:hunter2@a:7000,[::1]:7001/0", "redis+cluster://:***@a:7000,[::1]:7001/0"),
    ],
)
def test_password_is_masked_in_every_text_form(url: str, safe: str) -> None:
    settings = load_settings(["--redis.url", url, "--redis.key-prefix={a}"], {})
    assert settings.redis.url.get_secret_value() == url
    assert settings.redis.safe_url == safe
    forms = [repr(settings), str(settings), repr(settings.redis), f"{settings.redis.url}", settings.model_dump_json()]
    forms += [str(settings.model_dump()), repr(settings.redis.url)]
    assert not any("hunter2" in form for form in forms)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "localhost:6379",
        "http://:hunter2@h",
        "redis:/h",
        "redis://",
        "redis://:hunter2@",
        "redis:///0",
        "redis://a,b",
        "redis://h:x",
        "redis://h:65536",
        "redis://h/main",
        "redis://h/0#hunter2",
        "redis://:hun/ter2@h",
        "redis://:hun?ter2@h",
        "redis://:hun#ter2@h",
        "redis://:hunter2@x@h",
        "redis://:12/hunter2@h",
        "redis://:12?hunter2@h",
        "redis://:hun ter2@h",
        "unix://",
        "unix:///",
        "unix://run/redis.sock",
        "redis+sentinel://a",
        "redis+sentinel://a,/main",
        "redis+sentinel://a/",
        "rediss+sentinel://a",
        "rediss+cluster://a/1",
        "redis+sentinels://a/main",
        "redis+cluster://a/1",
        "redis+cluster://",
    ],
)
def test_invalid_redis_url_is_reported_without_the_url(url: str) -> None:
    (error,) = errors_of([f"--redis.url={url}"])
    assert error.startswith("--redis.url: must be ")
    assert "hun" not in error
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"redis": {"url": url}})
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        ["redis://:hunter2@h"],
        ["--redis.ulr=redis://:hunter2@h"],
        ["--redis.ulr", "redis://:hunter2@h"],
        ["--redis.key-prefix=redis://:hunter2@h"],
        ["--grpc.address", "redis://h?password=hunter2"],
        ["--log.level", "unix://me:hun ter2@h"],
    ],
)
def test_password_in_the_wrong_setting_is_masked(args: list[str]) -> None:
    errors = errors_of(args)
    assert errors
    assert not any("hun" in error for error in errors)


def service_link(service: str) -> dict[str, str]:
    return {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "50051",
        f"{service}_SERVICE_PORT_GRPC": "50051",
        f"{service}_PORT": "tcp://10.0.0.1:50051",
        f"{service}_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        f"{service}_PORT_50051_TCP_PROTO": "tcp",
        f"{service}_PORT_50051_TCP_PORT": "50051",
        f"{service}_PORT_50051_TCP_ADDR": "10.0.0.1",
    }


@pytest.mark.parametrize("service", ["OSSA_REGISTRY", "OSSA_REGISTRY_REDIS", "OSSA_REGISTRY_SERVICE"])
def test_kubernetes_service_variables_are_ignored(service: str) -> None:
    assert load_settings([], service_link(service)) == Settings()


def test_variable_that_only_looks_like_kubernetes_is_unknown() -> None:
    assert errors_of([], {"OSSA_REGISTRY_PORT": "50051"}) == ["OSSA_REGISTRY_PORT: unknown variable"]


def test_control_characters_in_a_name_are_escaped() -> None:
    assert errors_of(["--a\nb"]) == ["'--a\\nb': unknown flag"]


def test_help_contains_every_setting_within_the_width() -> None:
    lines = usage("ossa-registry serve", 100).splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for setting in SETTINGS:
        assert f"  {setting.flag} " in text
        assert f"Environment: {setting.variable}\n" in text + "\n"
        assert setting.field.description, f"{setting.key} has no docstring"
    assert "--log.level debug|info|warning|error\n" in text
    assert "Default: 300 (5 to 86400). Environment: OSSA_REGISTRY_SERVICE_TTL_SECONDS" in text


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.1.0.0/8", "example.com", "10.0.0.0/8;::1", "fe80::1%eth0/64"])
def test_invalid_network_is_an_error(text: str) -> None:
    rule = "must be networks such as 10.0.0.0/8, separated by commas, or 'none'"
    assert errors_of(["--health-check.denied-networks", text]) == [
        f"--health-check.denied-networks: {rule}, not {text!r}"
    ]


def test_networks_can_be_none_or_a_list_in_the_file(tmp_path: Path) -> None:
    assert load_settings(["--health-check.denied-networks=none"], {}).health_check.denied_networks == ()
    file = toml_file(tmp_path, 'health_check.allowed_networks = ["10.0.0.0/8", "::1"]')
    allowed = load_settings(["--config", file], {}).health_check.allowed_networks
    assert allowed == (IPv4Network("10.0.0.0/8"), IPv6Network("::1/128"))
    bad = toml_file(tmp_path, "health_check.allowed_networks = 7")
    assert errors_of(["--config", bad])[0].endswith(
        "must be networks such as 10.0.0.0/8, separated by commas, or 'none', not 7"
    )


def test_toml_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = toml_file(tmp_path, "\ufeffservice_ttl_seconds = 60")
    assert load_settings([f"--config={file}"], {}).service_ttl_seconds == 60

"""The command line without a registry: output and exit codes."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from registry_cli.main import main
from registry_server.__main__ import serve
from registry_server.config import Settings
from registry_server.config.sources import SETTINGS
from registry_server.errors import ConfigurationError

COMMAND = [str(Path(sys.executable).with_name("ossa-registry"))]
SERVE = [*COMMAND, "serve"]
MODULE = [sys.executable, "-m", "registry_server"]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OSSA_REGISTRY_")}
    return subprocess.run(
        command, env=environ | variables, capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Replace the start of the server by a recorder of its settings."""
    for name in [name for name in os.environ if name.startswith("OSSA_REGISTRY_")]:
        monkeypatch.delenv(name)
    calls: list[Settings] = []
    app = ModuleType("registry_server.process")
    app.run = calls.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, app.__name__, app)
    return calls


@pytest.mark.slow
def test_version_option_prints_the_version() -> None:
    done = run([*COMMAND, "--version"])
    assert (done.returncode, done.stdout) == (0, f"ossa-registry, version {version('ossa-registry')}\n")


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_commands(flag: str) -> None:
    done = run([*COMMAND, flag])
    assert done.returncode == 0
    assert "serve" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "program"), [(SERVE, "ossa-registry serve"), (MODULE, "python -m registry_server")]
)
def test_help_of_serve_lists_every_setting(command: list[str], program: str) -> None:
    done = run([*command, "--help"], COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {program} ")
    assert max(map(len, done.stdout.splitlines())) <= 100
    for setting in SETTINGS:
        assert setting.flag in done.stdout
        assert setting.variable in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [SERVE, MODULE])
@pytest.mark.parametrize(
    ("args", "variables", "expected"),
    [
        (["--grpc.adress=h:1"], {}, "--grpc.adress: unknown flag; did you mean --grpc.address?"),
        (["--config", "no.toml"], {}, "--config: cannot read 'no.toml': No such file or directory"),
        ([], {"OSSA_REGISTRY_WORKERS": "x"}, "OSSA_REGISTRY_WORKERS: must be a whole number, not 'x'"),
        ([], {"OSSA_REGISTRY_COLOUR": "x"}, "OSSA_REGISTRY_COLOUR: unknown variable"),
    ],
)
def test_configuration_error_is_one_line_and_exit_code_2(
    command: list[str], args: list[str], variables: dict[str, str], expected: str
) -> None:
    done = run([*command, *args], **variables)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"ossa-registry: {expected}\n")


@pytest.mark.slow
def test_every_invalid_setting_has_a_line(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text("colour = 1\nworkers = 0\n", encoding="utf-8")
    done = run([*SERVE, "--config", str(file), "--redis.url", "redis://:hun/ter2@h"])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ter2" not in done.stderr
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["ossa-registry", f"colour in {file}"],
        ["ossa-registry", f"workers in {file}"],
        ["ossa-registry", "--redis.url"],
    ]


@pytest.mark.slow
def test_unknown_command_is_reported() -> None:
    done = run([*COMMAND, "sevre"])
    assert done.returncode == 2
    assert "No such command 'sevre'" in done.stderr


@pytest.mark.slow
def test_command_line_does_not_load_the_server() -> None:
    code = (
        "import sys, registry_cli.main;"
        "print({name.split('.')[0] for name in sys.modules} & {'registry_server', 'grpc', 'aiohttp', 'redis'})"
    )
    assert run([sys.executable, "-c", code]).stdout == "set()\n"


def test_serve_passes_settings_from_flags_and_environment(started: list[Settings]) -> None:
    args = ["serve", "--grpc.address", "127.0.0.1:0", "--health-check.enabled=false", "--grpc.reflection"]
    result = CliRunner(env={"OSSA_REGISTRY_HTTP__ADDRESS": "127.0.0.1:0"}).invoke(main, args)
    assert (result.exit_code, result.output) == (0, "")
    (settings,) = started
    assert settings.grpc.address == settings.http.address == "127.0.0.1:0"
    assert not settings.health_check.enabled


def test_invalid_settings_prevent_the_start(started: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--workers=0"]) == 2
    assert started == []
    assert capsys.readouterr().err == ("ossa-registry: --workers: must be at least 1, not '0'\n")


def test_configuration_errors_of_the_server_are_reported_alike(
    started: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_settings: Settings) -> None:
        raise ConfigurationError("grpc.address: in use")

    monkeypatch.setattr(sys.modules["registry_server.process"], "run", refuse)
    assert serve([]) == 2
    assert started == []
    assert capsys.readouterr().err == "ossa-registry: grpc.address: in use\n"


def test_serve_shows_its_version(started: list[Settings], capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--version"]) == 0
    assert started == []
    assert capsys.readouterr().out == f"ossa-registry, version {version('ossa-registry')}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--workers=0"], "--workers: must be at least 1, not '0'"),
        (["--redis.url=redis://127.0.0.1:1"], "redis.url: redis://127.0.0.1:1: Error 111 connecting to"),
        (["--security.policy-file=no.yaml"], "security.policy_file: cannot read 'no.yaml': No such file"),
        (["--tls.cert-file=no.pem", "--tls.key-file=no.pem"], "tls.cert_file, tls.key_file: cannot read"),
        (["--data-dir=registry.toml"], "data_dir: "),
    ],
)
def test_check_reports_what_would_prevent_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry.toml").touch()
    done = run([*SERVE, "--check", *flags])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ossa-registry: {expected}")


@pytest.mark.slow
def test_check_changes_nothing_if_a_server_can_start(tmp_path: Path) -> None:
    done = run([*SERVE, "--check", f"--data-dir={tmp_path / 'data'}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ossa-registry: the configuration is valid; Redis: ")
    assert list(tmp_path.iterdir()) == []

"""The reference tables are complete, and every link, path and example file in the documents is valid."""

import ast
import re
import sys
from pathlib import Path

import click
import pytest

import registry_client
from docs import tables
from ossa.registry.v1.registry_service_pb2 import DESCRIPTOR
from ossa.registry.v1.service_pb2 import HealthCheck, ServiceFilter
from registry_cli.exits import Exit
from registry_cli.main import main
from registry_server.admission import OUTCOMES
from registry_server.config import load_settings, usage
from registry_server.config.sources import CLIENT_VARIABLES, CONFIG_FLAG, CONFIG_VARIABLE
from registry_server.errors import RegistryError
from registry_server.probes import outcome
from registry_server.store.keys import Keys
from tests.support.markdown import DOCUMENTS, ROOT, anchors_of, bare, links, prose, rows, section, table, text_of

SETTINGS = "docs/reference/settings.md"
SETTING_HELP = re.compile(
    r"^  (--[\w.-]+) .*\n(?:      .*\n)?      Default: (.+?)(?: \(([^()]*)\))?\. Environment: (\w+)$", re.MULTILINE
)
RPCS = [method.name for method in DESCRIPTOR.services_by_name["RegistryService"].methods]


# The README is short and keeps its two commands.


def test_readme_is_short_and_has_the_commands_to_run_and_test() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= 150
    assert {"$ make run", "$ make test"} <= set(readme.splitlines())
    assert readme.index("docs/images/session.svg") < readme.index("$ make run")


# Settings.


def documented_settings() -> dict[str, list[str]]:
    """Flag to the other cells of its row."""
    return {bare(flag): cells for flag, *cells in rows(text_of(SETTINGS))}


def settings_of_the_help() -> dict[str, tuple[str, str, str]]:
    """Flag to variable, default and range, as ``serve --help`` prints them."""
    help_ = usage("ossa-registry serve", width=10_000)
    return {flag: (variable, default, range_) for flag, default, range_, variable in SETTING_HELP.findall(help_)}


@pytest.mark.skipif(sys.platform != "linux", reason="the documented default of the data directory is that of Linux")
def test_every_setting_is_documented_with_variable_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    documented = {flag: (bare(cells[0]), bare(cells[1])) for flag, cells in documented_settings().items()}
    assert documented == {flag: (variable, default) for flag, (variable, default, _) in settings_of_the_help().items()}
    assert len(documented) == len(rows(text_of(SETTINGS))), "each once"


def test_every_setting_is_documented_with_its_range() -> None:
    documented = documented_settings()
    wrong = {
        flag: range_
        for flag, (_, _, range_) in settings_of_the_help().items()
        if not documented[flag][2].rstrip("| .").casefold().endswith(range_)
    }
    assert wrong == {}


def test_settings_file_is_documented_and_its_example_loads(tmp_path: Path) -> None:
    page = text_of(SETTINGS)
    assert CONFIG_FLAG in page
    assert CONFIG_VARIABLE in page
    example = re.search(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert example
    file = tmp_path / "registry.toml"
    file.write_text(example[1], encoding="utf-8")
    assert load_settings([CONFIG_FLAG, str(file)], {}).grpc.address == "0.0.0.0:50051"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_setting_that_a_document_names_exists(document: Path) -> None:
    groups = {flag.partition(".")[0] for flag in settings_of_the_help() if "." in flag}
    named = {
        flag
        for flag in re.findall(r"(?<![\w-])(--[a-z-]+\.[a-z-]+[a-z])", document.read_text("utf-8"))
        if flag.partition(".")[0] in groups
    }
    assert named - settings_of_the_help().keys() == set()


# RPCs, errors, keys.


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_generated_tables_are_current(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert text.splitlines() == tables.with_tables(text).splitlines(), "run `make docs`"


def test_every_rpc_is_in_the_reference_once() -> None:
    assert [bare(row[0]) for row in table(text_of("docs/reference/api.md"), "RPC")] == RPCS


def test_every_rpc_has_a_grpcurl_example_and_every_filter_a_row() -> None:
    document = text_of("docs/grpcurl.md")
    called = set(re.findall(r"^[^`\n]*ossa\.registry\.v1\.RegistryService/(\w+)", document, re.MULTILINE))
    assert called == set(RPCS)
    documented = [bare(row[0]) for row in table(document, "Field")]
    assert documented == [field.name for field in ServiceFilter.DESCRIPTOR.fields]


def test_every_error_of_the_sdk_is_documented() -> None:
    documented = [name for row in table(text_of("docs/sdk.md"), "Error") for name in re.findall(r"`(\w+)`", row[0])]
    exported = [getattr(registry_client, name) for name in registry_client.__all__]
    errors = {each.__name__ for each in exported if isinstance(each, type) and issubclass(each, Exception)}
    assert sorted(documented) == sorted(errors - {"RegistryError"})


def test_every_error_is_in_the_reference_with_its_code() -> None:
    documented = [(bare(code), bare(reason)) for code, reason, *_ in table(text_of("docs/reference/errors.md"), "Code")]
    assert sorted(documented) == sorted(
        [(outcome.code, error.reason) for error, outcome in OUTCOMES.items()] + [("INTERNAL", RegistryError.reason)]
    )


@pytest.mark.parametrize("document", ["docs/reference/redis-keys.md", "docs/redis.md"])
def test_every_key_in_redis_is_documented(document: str) -> None:
    keys = Keys.under("ossa:services")
    documented = [bare(row[0]) for row in table(text_of(document), "Key")]
    assert sorted(documented) == sorted({*keys, keys.document_prefix + "{name}"} - {keys.document_prefix})


def test_every_type_of_probe_is_documented() -> None:
    documented = [bare(row[0]) for row in table(text_of("docs/health.md"), "`health_check`")]
    assert documented == [field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields]


def texts_in(module: str) -> set[str]:
    """Return the phrases among the constants of a module of the probes."""
    tree = ast.parse(text_of(f"registry_server/probes/{module}.py"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    texts = {value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)}
    return {text for text in texts if " " in text}


def test_every_error_of_a_probe_is_documented() -> None:
    texts = {value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, str)}
    texts |= texts_in("http") | texts_in("grpc")
    texts.discard("failed to connect to all addresses")  # recognised in a message of gRPC, never reported
    assert len(texts) > 20
    documented = {bare(text) for text, _ in rows(section(text_of("docs/health.md"), "## Probe errors"))}
    assert texts - documented == set()


# The command line and the Makefile.


def test_every_make_target_is_documented() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", text_of("Makefile"), flags=re.MULTILINE)
    documented = [bare(row[0]) for row in rows(section(text_of("CONTRIBUTING.md"), "## Make targets"))]
    assert documented == [f"make {target}" for target in targets]


def test_every_exit_code_is_documented() -> None:
    documented = [int(code) for code, _ in rows(section(text_of("docs/cli.md"), "## Exit codes"))]
    assert documented == sorted(Exit)


def test_every_connection_flag_is_documented_with_its_variable() -> None:
    context = click.Context(main, info_name="ossa-registry")
    command = main.get_command(context, "list")
    assert command is not None
    options = [each for each in command.params if isinstance(each, click.Option)]
    # The connection flags are between these two, in the order of the help.
    first, last = (
        next(at for at, each in enumerate(options) if each.name == name) for name in ("targets", "token_file")
    )
    known = {each.opts[-1]: each.envvar for each in options[first : last + 1]}
    documented = [
        [None if cell == "-" else bare(cell.rpartition(", ")[2]) for cell in (flag, variable)]
        for flag, variable, _ in table(text_of("docs/cli.md"), "Flag")
    ]
    assert {flag: variable for flag, variable in documented if flag} == known
    assert {variable for _, variable in documented if variable} == CLIENT_VARIABLES


# Links and paths.


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_path_in_a_code_span_exists(document: Path) -> None:
    paths = re.findall(
        r"`((?:registry_server|registry_cli|registry_client|ossa_common|protos|tests|docs|deploy)/[\w./-]*\w\.\w+)`",
        prose(document.read_text("utf-8")),
    )
    assert [path for path in paths if not (ROOT / path).exists() and "NNNN" not in path] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_relative_link_has_a_target(document: Path) -> None:
    broken = []
    for link in links(document.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        exists = target.exists() and target.is_relative_to(ROOT)
        if not exists or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(text_of("README.md"))}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "adr"}
    assert pages - linked == set()


def test_index_of_decisions_has_every_page_with_its_title() -> None:
    folder = ROOT / "docs" / "adr"
    pages = {
        page.name: page.read_text("utf-8").partition("\n")[0].removeprefix(f"# {page.name[:4]}: ")
        for page in folder.glob("[0-9]*.md")
    }
    index = re.findall(
        r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \|$", (folder / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert {name: title for _, name, title in index} == pages
    assert [number for number, _, _ in index] == [name[:4] for name in sorted(pages)]

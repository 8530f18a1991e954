"""The documents say what the code says: settings, RPCs, errors, keys, names and links."""

import ast
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from ossa.registry.v1.registry_service_pb2 import DESCRIPTOR
from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_cli.exits import Exit
from registry_cli.main import main
from registry_server.config import load_settings, usage
from registry_server.config.sources import CLIENT_VARIABLES, CONFIG_FLAG, CONFIG_VARIABLE
from registry_server.errors import RegistryError
from registry_server.probes import grpc, http, outcome
from registry_server.rpc.status import CODES
from registry_server.store.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {"build", "dist", "node_modules"}
DOCUMENTS = sorted(
    file
    for file in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in NOT_OURS for part in file.relative_to(ROOT).parts)
)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^()\s]+)\)")
SETTING_HELP = re.compile(
    r"^  (--[\w.-]+) .*\n(?:      .*\n)?      Default: (.+?)(?: \(([^()]*)\))?\. Environment: (\w+)$", re.MULTILINE
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level, _, _ = heading.partition(" ")
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, flags=re.MULTILINE | re.DOTALL
    )
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headings left out."""
    lines = text.splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for before, line in pairwise(["", *lines])
        if line.startswith("| ") and before.startswith("|")
    ]


def bare(cell: str) -> str:
    assert cell.startswith("`"), cell
    assert cell.endswith("`"), cell
    return cell[1:-1]


def settings_of_the_help() -> dict[str, tuple[str, str, str]]:
    """Flag to variable, default and range, as ``serve --help`` tells them."""
    help_ = usage("ossa-registry serve", width=10_000)
    return {flag: (variable, default, range_) for flag, default, range_, variable in SETTING_HELP.findall(help_)}


def test_every_error_of_a_probe_is_documented() -> None:
    fixed = {value for name, value in vars(outcome).items() if name.isupper() and isinstance(value, str)}
    fixed |= {http._CUT_SHORT, http._DEGRADED, http._HEADER_TOO_LARGE, http._NOT_HTTP}
    fixed |= {grpc._NOT_GRPC, grpc._UNKNOWN_SERVICE}
    documented = {bare(text) for text, _ in rows(section(text_of("docs/health.md"), "## What a probe may say"))}
    assert fixed - documented == set()


@pytest.mark.skipif(sys.platform != "linux", reason="the default data directory that is documented is that of Linux")
def test_the_readme_has_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    documented = {bare(flag): (bare(variable), bare(default)) for flag, variable, default, _ in configuration_rows()}
    assert documented == {flag: (variable, default) for flag, (variable, default, _) in settings_of_the_help().items()}


def test_the_readme_has_the_range_of_every_setting() -> None:
    meanings = {bare(flag): meaning for flag, _, _, meaning in configuration_rows()}
    wrong = {
        flag: range_
        for flag, (_, _, range_) in settings_of_the_help().items()
        if not meanings[flag].rstrip("| .").casefold().endswith(range_)
    }
    assert wrong == {}


def configuration_rows() -> list[list[str]]:
    return rows(section(text_of("README.md"), "## Configuration"))


def test_the_readme_names_the_settings_file() -> None:
    configuration = section(text_of("README.md"), "## Configuration")
    assert CONFIG_FLAG in configuration
    assert CONFIG_VARIABLE in configuration


def test_the_settings_file_of_the_readme_is_one(tmp_path: Path) -> None:
    example = re.search(r"^```toml\n(.*?)^```$", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert example
    file = tmp_path / "registry.toml"
    file.write_text(example[1], encoding="utf-8")
    assert load_settings([CONFIG_FLAG, str(file)], {}).grpc.address == "0.0.0.0:50051"


def test_the_readme_has_every_rpc_once() -> None:
    documented = [bare(row[0]) for row in rows(section(text_of("README.md"), "## RPCs"))]
    assert documented == [method.name for method in DESCRIPTOR.services_by_name["RegistryService"].methods]


def test_every_rpc_is_called_by_hand_and_every_filter_told() -> None:
    document = text_of("docs/grpcurl.md")
    called = set(re.findall(r"^[^`\n]*ossa\.registry\.v1\.RegistryService/(\w+)", document, re.MULTILINE))
    assert called == {method.name for method in DESCRIPTOR.services_by_name["RegistryService"].methods}
    documented = [bare(row[0]) for row in rows(section(document, "## Queries"))]
    assert documented == [field.name for field in ServiceFilter.DESCRIPTOR.fields]


def test_the_readme_has_every_error_with_its_code() -> None:
    documented = [(bare(code), bare(reason)) for code, reason, *_ in rows(section(text_of("README.md"), "## Errors"))]
    assert sorted(documented) == sorted(
        [(code.name, error.reason) for error, code in CODES.items()] + [("INTERNAL", RegistryError.reason)]
    )
    # Other tests in this process may have made classes of their own.
    ours, unseen = set(), [RegistryError]
    while unseen:
        below = [error for error in unseen.pop().__subclasses__() if error.__module__ == RegistryError.__module__]
        ours.update(below)
        unseen += below
    assert ours == set(CODES)


@pytest.mark.parametrize(("document", "heading"), [("README.md", "## Redis keys"), ("docs/redis.md", "## Keys")])
def test_every_key_in_redis_is_documented(document: str, heading: str) -> None:
    keys = Keys.under("ossa:services")
    documented = [bare(row[0]) for row in rows(section(text_of(document), heading)) if row[0].startswith("`ossa:")]
    assert sorted(documented) == sorted({*keys, keys.document_prefix + "{name}"} - {keys.document_prefix})


def test_every_make_target_is_documented() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", text_of("Makefile"), flags=re.MULTILINE)
    documented = [bare(row[0]) for row in rows(section(text_of("CONTRIBUTING.md"), "## Make targets"))]
    assert documented == [f"make {target}" for target in targets]


def test_every_exit_code_of_the_command_line_is_documented() -> None:
    documented = [int(code) for code, _ in rows(section(text_of("docs/cli.md"), "## Exit codes"))]
    assert documented == sorted(Exit)


def test_every_flag_that_says_where_the_registry_is_is_documented() -> None:
    context = click.Context(main, info_name="ossa-registry")
    command = main.get_command(context, "list")
    assert command is not None
    options = [each for each in command.params if isinstance(each, click.Option)]
    # Between these two, in the order of the help.
    first, last = (
        next(at for at, each in enumerate(options) if each.name == name) for name in ("targets", "token_file")
    )
    known = {each.opts[-1]: each.envvar for each in options[first : last + 1]}
    documented = [
        [None if cell == "-" else bare(cell.rpartition(", ")[2]) for cell in (flag, variable)]
        for flag, variable, _ in rows(section(text_of("docs/cli.md"), "## Connection settings"))
    ]
    assert {flag: variable for flag, variable in documented if flag} == known
    assert {variable for _, variable in documented if variable} == CLIENT_VARIABLES


def names_in(source: str) -> Iterator[str]:
    """Everything that a Python module defines, methods as ``Class.method``."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            match node:
                case ast.ClassDef():
                    yield prefix + node.name
                    yield from walk(node.body, f"{prefix}{node.name}.")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield prefix + node.name
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name
                case ast.Assign():
                    yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
                case _:
                    pass

    return walk(ast.parse(source).body, "")


def is_there(reference: str) -> bool:
    """Whether ``path`` or ``path:name`` exists, from the root or below ``registry_server/``."""
    path, _, name = reference.partition(":")
    for file in (ROOT / path, ROOT / "registry_server" / path):
        if not file.exists():
            continue
        if not name:
            return True
        source = file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            return name in names_in(source)
        return re.search(rf"\bfunction {re.escape(name)}\b", source) is not None
    return False


REFERENCES = sorted(
    {
        reference
        for reference in CODE.findall(text_of("docs/architecture.md"))
        if re.fullmatch(r"[\w./-]+(\.(py|lua|proto|toml|md)(:[\w.]+)?|/)", reference)
    }
)


def test_the_architecture_page_names_code() -> None:
    assert len(REFERENCES) > 60


@pytest.mark.parametrize("reference", REFERENCES)
def test_code_named_on_the_architecture_page_exists(reference: str) -> None:
    assert is_there(reference)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_path_in_code_spans_exists(document: Path) -> None:
    paths = re.findall(
        r"`((?:registry_server|registry_cli|protos|tests|docs)/[\w./-]*\w\.\w+)`", prose(document.read_text("utf-8"))
    )
    assert [path for path in paths if not (ROOT / path).exists() and "NNNN" not in path] == []


def anchors_of(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(prose(document.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


def test_the_index_of_decisions_has_every_page_with_its_title() -> None:
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

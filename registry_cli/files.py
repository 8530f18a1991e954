"""Services from files or stdin: YAML with one or several documents, or JSON with an object or an array."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from ossa_common.json_reader import read_service
from ossa_common.violations import Violation
from registry_cli.exits import Exit, Failure
from registry_cli.output import Output
from registry_client import Service

STDIN: Final = "-"
SUFFIXES: Final = (".yaml", ".yml", ".json")
"""Suffixes of the files that are read from a directory."""


class ServiceInput(NamedTuple):
    """A service from a file or from the command line."""

    location: str
    """Location for error messages, such as ``agents.yaml, document 2 (line 14)``; empty for the command line."""
    service: Service
    violations: list[Violation]
    """Errors in the structure of the document."""


def read_services(paths: Sequence[str]) -> tuple[list[ServiceInput], list[Failure]]:
    """Read the services of files, of stdin (``-``), and of all files in directories, ordered by file name.

    Returns:
        The services, and the failures of the paths that cannot be read or are neither YAML nor JSON.
    """
    inputs: list[ServiceInput] = []
    failures: list[Failure] = []
    for path in paths:
        for file in _files(path):
            try:
                inputs += _read_file(file)
            except Failure as failure:
                failures.append(failure)
    return inputs, failures


def print_invalid(out: Output, inputs: Sequence[ServiceInput]) -> set[int]:
    """Print structural errors and duplicate names; return the ids of the affected inputs."""
    invalid: set[int] = set()
    locations: dict[str, str] = {}
    for each in inputs:
        name = each.service.name
        for field, text in each.violations:
            out.print_error(f"{each.location}: {field}: {text}")
        if name and name in locations:
            out.print_error(f"{each.location}: name: duplicate of {name!r} in {locations[name]}")
        if each.violations or (name and name in locations):
            invalid.add(id(each))
        locations.setdefault(name, each.location)
    return invalid


def _files(path: str) -> list[str]:
    """Return the files of a directory, or the path itself."""
    if path != STDIN and Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.suffix in SUFFIXES) or [path]
    return [path]


def _read_file(path: str) -> Iterator[ServiceInput]:
    name = "standard input" if path == STDIN else path
    for location, value in _parse_values(name, _read_text(path, name)):
        yield ServiceInput(location, *read_service(value, number_hint="; put it in quotes"))


def _read_text(path: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except IsADirectoryError:
        suffixes = ", ".join(SUFFIXES)
        raise Failure(f"{path}: the directory contains no files with suffix {suffixes}", Exit.USAGE) from None
    except OSError as error:
        raise Failure(f"cannot read {name}: {error.strerror}", Exit.USAGE) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{name}: invalid UTF-8: {error.reason} at byte {error.start}", Exit.USAGE) from None


def _parse_values(name: str, text: str) -> Iterator[tuple[str, object]]:
    """Yield the location and content of each service in a text."""
    try:
        documents = [(None, json.loads(text))] if _looks_like_json(name, text) else list(_yaml_documents(text))
    except yaml.MarkedYAMLError as error:
        raise Failure(f"{name}: invalid YAML: {_yaml_problem(error)}", Exit.USAGE) from None
    except yaml.YAMLError as error:  # a character that YAML does not permit
        raise Failure(f"{name}: invalid YAML: {' '.join(str(error).split())}", Exit.USAGE) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Failure(f"{name}: invalid JSON: {where}: {error.msg}", Exit.USAGE) from None
    except RecursionError:
        raise Failure(f"{name}: nested too deeply", Exit.USAGE) from None
    if not documents:
        raise Failure(f"{name}: the file is empty", Exit.USAGE)
    for number, (lines, value) in enumerate(documents, 1):
        location = name if len(documents) == 1 else f"{name}, document {number}"
        if not isinstance(value, list):
            yield location + (f" (line {lines[0]})" if lines and len(documents) > 1 else ""), value
            continue
        for index, item in enumerate(value):
            yield f"{location}, item {index + 1}" + (f" (line {lines[1 + index]})" if lines else ""), item


def _looks_like_json(name: str, text: str) -> bool:
    """Return whether to parse a text as JSON: by the suffix or, without a known suffix, by its content."""
    if Path(name).suffix in SUFFIXES:
        return Path(name).suffix == ".json"
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _yaml_documents(text: str) -> Iterator[tuple[list[int], object]]:
    """Yield each document: its line number followed by those of its items, if it is a list, and its content."""
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            if node.tag == "tag:yaml.org,2002:null" and not node.value:
                continue  # an empty document between two `---` lines
            lines = [part.start_mark.line + 1 for part in (node, *items)]
            yield lines, loader.construct_document(node)
    finally:
        loader.dispose()


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + (error.problem or error.context or "the document cannot be parsed")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # CSafeLoader exists only in some builds
    """YAML with the booleans of version 1.2, without timestamps, and with unique keys.

    ``no``, ``on`` and times remain text.
    """

    yaml_implicit_resolvers: Final[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - signature of the base class
        """Reject duplicate keys, of which PyYAML would silently drop all but the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


# The booleans of YAML 1.2.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")

"""Services from files: YAML with one or several documents, JSON with an object or an array, each from stdin too."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from registry_cli.documents import read_service
from registry_cli.exits import Exit, Failure
from registry_client import Service, Violation

STDIN: Final = "-"
SUFFIXES: Final = (".yaml", ".yml", ".json")
"""What is read of a directory."""


class Given(NamedTuple):
    """A service of a file."""

    place: str
    """Where it stands, for people: ``agents.yaml, document 2 (line 14)``."""
    service: Service
    violations: list[Violation]
    """What is wrong with its shape."""


def read(path: str) -> Iterator[Given]:
    """Reads the services of a file, of stdin (``-``), or of all files of a directory by name.

    Raises:
        Failure: It cannot be read, or is neither YAML nor JSON.
    """
    if path != STDIN and Path(path).is_dir():
        files = sorted(file for file in Path(path).iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise Failure(f"{path}: no {', '.join(SUFFIXES)} in this directory", Exit.USAGE)
        for file in files:
            yield from read(str(file))
        return
    name = "standard input" if path == STDIN else path
    for place, value in _values(name, _text(path, name)):
        yield Given(place, *read_service(value))


def _text(path: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise Failure(f"{name}: cannot be read: {error.strerror}", Exit.USAGE) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{name}: is not UTF-8 text: {error.reason} at byte {error.start}", Exit.USAGE) from None


def _values(name: str, text: str) -> Iterator[tuple[str, object]]:
    """Place and content of each service in a text."""
    try:
        documents = [(None, json.loads(text))] if _is_json(name, text) else list(_yaml_documents(text))
    except yaml.MarkedYAMLError as error:
        raise Failure(f"{name}: is not YAML: {_yaml_fault(error)}", Exit.USAGE) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise Failure(f"{name}: is not YAML: {' '.join(str(error).split())}", Exit.USAGE) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Failure(f"{name}: is not JSON: {where}: {error.msg}", Exit.USAGE) from None
    except RecursionError:
        raise Failure(f"{name}: is nested too deep", Exit.USAGE) from None
    if not documents:
        raise Failure(f"{name}: is empty", Exit.USAGE)
    for number, (lines, value) in enumerate(documents, 1):
        whole = name if len(documents) == 1 else f"{name}, document {number}"
        if not isinstance(value, list):
            yield whole + (f" (line {lines[0]})" if lines and len(documents) > 1 else ""), value
            continue
        for index, item in enumerate(value):
            yield f"{whole}, item {index + 1}" + (f" (line {lines[1 + index]})" if lines else ""), item


def _is_json(name: str, text: str) -> bool:
    """By the name, where it says so. Else what begins like JSON is JSON, unless only YAML can read it."""
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
    """Lines and content of each document; the first line is its own, the others those of its items if it is a list."""
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            items = node.value if isinstance(node, yaml.SequenceNode) else []
            if node.tag == "tag:yaml.org,2002:null" and not node.value:
                continue  # nothing between two lines of `---`
            lines = [each.start_mark.line + 1 for each in (node, *items)]
            yield lines, loader.construct_document(node)
    finally:
        loader.dispose()


def _yaml_fault(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + (error.problem or error.context or "it cannot be read")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # which of them depends on the build
    """YAML as people mean it: ``no`` and ``on`` are words, times stay text, and a key is given once."""

    yaml_implicit_resolvers: Final[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - yaml's
        """Refuses keys that are given twice: the first would be lost without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


# The booleans of YAML 1.2.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")

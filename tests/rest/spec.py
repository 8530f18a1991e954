"""Access to ``openapi.yaml``, and validation of responses against it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

FILE = Path(__file__).parents[2] / "registry_server" / "gateway" / "openapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
_REGISTRY: Registry[Any] = Registry().with_resource("spec", DRAFT202012.create_resource(DOCUMENT))
_METHODS = ("get", "put", "post", "delete")


@dataclass(frozen=True)
class Node:
    """A part of the document and its JSON pointer."""

    pointer: str
    value: Any

    def __getitem__(self, key: str) -> "Node":
        escaped = key.replace("~", "~0").replace("/", "~1")
        return resolved(Node(f"{self.pointer}/{escaped}", self.value[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def violations(self, instance: Any) -> list[str]:
        """Return the violations of an instance, if this node is a schema."""
        validator = Draft202012Validator({"$ref": f"spec#{self.pointer}"}, registry=_REGISTRY)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def resolved(node: Node) -> Node:
    """Return the target of a reference, or the node itself. The validator resolves references within schemas."""
    if isinstance(node.value, dict) and len(node.value) == 1 and "$ref" in node.value:
        pointer = node.value["$ref"].removeprefix("#")
        value: Any = DOCUMENT
        for part in pointer.split("/")[1:]:
            value = value[part.replace("~1", "/").replace("~0", "~")]
        return resolved(Node(pointer, value))
    return node


ROOT = Node("", DOCUMENT)


def schema(name: str) -> Node:
    """Return a schema by its name."""
    return ROOT["components"]["schemas"][name]


def operations() -> Iterator[tuple[str, str, Node]]:
    """Yield method, path and node of every operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method.upper(), path, ROOT["paths"][path][method]


def operation(method: str, path: str) -> Node | None:
    """Return the operation of a request, or ``None``; ``path`` excludes the query."""
    for template, item in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern + "/?" * template.startswith("/api/"), path) and method.lower() in item:
            return ROOT["paths"][template][method.lower()]
    return None


def parameters(method: str, path: str) -> list[Node]:
    """Return the parameters of an operation, including those of its path; ``path`` is the path template."""
    item = ROOT["paths"][path]
    nodes = [item] if "parameters" in item else []
    nodes += [item[method.lower()]] if "parameters" in item[method.lower()] else []
    return [
        resolved(Node(f"{node.pointer}/parameters/{index}", value))
        for node in nodes
        for index, value in enumerate(node.value["parameters"])
    ]


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Fail if a response does not match the document."""
    found = operation("GET" if method == "HEAD" else method, path)
    if found is None:  # unknown path or method, or an asset of the documentation page
        if status >= 400 and body:
            assert schema("Failure").violations(json.loads(body)) == []
        return
    assert str(status) in found["responses"], f"{method} {path}: {status} is not documented: {body!r}"
    response = found["responses"][str(status)]
    for name in response.value.get("headers", {}):
        _check_header(response["headers"][name], name, headers)
    if method == "HEAD" or "content" not in response:
        assert not body
        return
    media_type = headers["Content-Type"].partition(";")[0]
    assert media_type in response["content"], f"{media_type} is not documented for {status}"
    if media_type == "application/json":
        violations = response["content"][media_type]["schema"].violations(json.loads(body))
        assert violations == [], f"{method} {path}: {status} {body!r}"


def _check_header(header: Node, name: str, headers: Mapping[str, str]) -> None:
    value = headers.get(name)
    if value is None:
        assert not header.value.get("required"), f"{name} is missing"
        return
    typed = int(value) if header["schema"].value.get("type") == "integer" else value
    assert header["schema"].violations(typed) == []

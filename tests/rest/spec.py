"""What ``openapi.yaml`` says, and whether an answer keeps to it."""

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
    """A part of the document, and where it stands."""

    pointer: str
    value: Any

    def __getitem__(self, key: str) -> "Node":
        escaped = key.replace("~", "~0").replace("/", "~1")
        return resolved(Node(f"{self.pointer}/{escaped}", self.value[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def violations(self, instance: Any) -> list[str]:
        """What is wrong with an instance, if this is a schema."""
        validator = Draft202012Validator({"$ref": f"spec#{self.pointer}"}, registry=_REGISTRY)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def resolved(node: Node) -> Node:
    """What a node refers to, or the node itself; references in schemas are left to the validator."""
    if isinstance(node.value, dict) and len(node.value) == 1 and "$ref" in node.value:
        pointer = node.value["$ref"].removeprefix("#")
        value: Any = DOCUMENT
        for part in pointer.split("/")[1:]:
            value = value[part.replace("~1", "/").replace("~0", "~")]
        return resolved(Node(pointer, value))
    return node


ROOT = Node("", DOCUMENT)


def schema(name: str) -> Node:
    """A schema by its name."""
    return ROOT["components"]["schemas"][name]


def operations() -> Iterator[tuple[str, str, Node]]:
    """Method, path and description of every operation."""
    for path, item in DOCUMENT["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method.upper(), path, ROOT["paths"][path][method]


def operation(method: str, path: str) -> Node | None:
    """The operation that a request is, by the path as it was sent without its query."""
    for template, item in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in item:
            return ROOT["paths"][template][method.lower()]
    return None


def parameters(method: str, path: str) -> list[Node]:
    """The parameters of an operation, those of its path included; ``path`` is the template."""
    item = ROOT["paths"][path]
    nodes = [item] if "parameters" in item else []
    nodes += [item[method.lower()]] if "parameters" in item[method.lower()] else []
    return [
        resolved(Node(f"{node.pointer}/parameters/{index}", value))
        for node in nodes
        for index, value in enumerate(node.value["parameters"])
    ]


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Fails if an answer is not one that is documented."""
    found = operation("GET" if method == "HEAD" else method, path)
    if found is None:  # no such path, not this method, or a file of the page
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
        wrong = response["content"][media_type]["schema"].violations(json.loads(body))
        assert wrong == [], f"{method} {path}: {status} {body!r}"


def _check_header(header: Node, name: str, headers: Mapping[str, str]) -> None:
    value = headers.get(name)
    if value is None:
        assert not header.value.get("required"), f"{name} is missing"
        return
    typed = int(value) if header["schema"].value.get("type") == "integer" else value
    assert header["schema"].violations(typed) == []

"""YAML parsing that records the line of every value, so that errors can name it."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import yaml

Place = tuple[str | int, ...]
"""Keys and indexes of a value, as in pydantic's errors."""

# The C loader, if available: parsing blocks the event loop and takes a twentieth of the time.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE: Final = "tag:yaml.org,2002:merge"
_TEXT: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "str"))


class BadYaml(Exception):
    """The text is not valid; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


class Document(NamedTuple):
    """A parsed document."""

    value: Any
    lines: Mapping[Place, int]
    """Line of each value, from 1."""

    def line_of(self, place: Place) -> int:
        """Return the line of a value, or of the closest enclosing value that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str) -> Document:
    """Parse a document of mappings with text keys, lists, text, numbers, booleans and null.

    Aliases are rejected: a few lines of them can expand to gigabytes.

    Raises:
        BadYaml: The text is not such a document.
    """
    lines: dict[Place, int] = {}
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):
                raise BadYaml(
                    event.start_mark.line + 1 if event.start_mark else 1,
                    "has an alias (*NAME); aliases are not supported",
                )
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else _value(loader, node, (), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYaml(mark.line + 1 if mark else 1, f"is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # an invalid character
        position = getattr(error, "position", 0)
        raise BadYaml(text.count("\n", 0, position) + 1, "is not YAML: it contains a control character") from None
    except RecursionError:
        raise BadYaml(1, "is nested too deeply") from None
    return Document(value, lines)


def _value(loader: Any, node: yaml.Node, place: Place, lines: dict[Place, int]) -> Any:
    lines[place] = line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, place, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*place, i), lines) for i, item in enumerate(node.value)]
    # Dates stay text: pydantic parses and validates them.
    if node.tag not in _PLAIN:
        return node.value
    try:
        return loader.construct_object(node)
    except ValueError:  # such as !!int of a word
        raise BadYaml(line, f"is not a valid {node.tag.rpartition(':')[2]}") from None


def _mapping(loader: Any, node: yaml.MappingNode, place: Place, lines: dict[Place, int]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {_TEXT, _MERGE}:
            raise BadYaml(line, "has a key that is not text")
        if key.value in values:
            raise BadYaml(line, f"has the key {key.value[:64]!r} twice")
        values[key.value] = _value(loader, value, (*place, key.value), lines)
        lines[(*place, key.value)] = line
    return values

"""Reads YAML and remembers the line of every value, so that an error can name it."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import yaml

Place = tuple[str | int, ...]
"""Keys and indexes that lead to a value, as pydantic gives them."""

_MERGE: Final = "tag:yaml.org,2002:merge"
_TEXT: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "str"))


class BadYaml(Exception):
    """The text cannot be read; ``line`` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        self.line = line
        super().__init__(what)


class Document(NamedTuple):
    """What was read."""

    value: Any
    lines: Mapping[Place, int]
    """Line of each value, from 1."""

    def line_of(self, place: Place) -> int:
        """The line of a value, or of the nearest that is there around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str) -> Document:
    """Reads a document of mappings with text keys, lists, text, numbers, booleans and null.

    Aliases are refused: nobody needs them here, and a few lines of them make gigabytes.

    Raises:
        BadYaml: It is none.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        value = None if node is None else _value(loader, node, (), lines, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYaml(mark.line + 1 if mark else 1, f"is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:  # a character that is none
        position = getattr(error, "position", 0)
        raise BadYaml(text.count("\n", 0, position) + 1, "is not YAML: it has a special character") from None
    except RecursionError:
        raise BadYaml(1, "is nested too deeply") from None
    finally:
        loader.dispose()
    return Document(value, lines)


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Place, lines: dict[Place, int], seen: set[int]) -> Any:
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise BadYaml(line, "has an alias (*NAME), which is not taken here")
    seen.add(id(node))
    lines[place] = line
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, place, lines, seen)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*place, i), lines, seen) for i, item in enumerate(node.value)]
    # Dates stay text: pydantic reads them, and says what is wrong with them.
    return loader.construct_object(node) if node.tag in _PLAIN else node.value


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, place: Place, lines: dict[Place, int], seen: set[int]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {_TEXT, _MERGE}:
            raise BadYaml(line, "has a key that is not text")
        if key.value in values:
            raise BadYaml(line, f"has the key {key.value[:64]!r} twice")
        values[key.value] = _value(loader, value, (*place, key.value), lines, seen)
        lines[(*place, key.value)] = line
    return values

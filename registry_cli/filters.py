"""The filter options of ``list`` and ``watch``: one for each field of ``ServiceFilter``."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

import click

from ossa_common.json_shape import STATUS_BY_WORD, TEXT_FILTERS
from registry_cli.completion import CAPABILITY_NAME
from registry_cli.errors import filter_flag
from registry_client import ServiceFilter
from registry_client.values import FilterFields, make_filter

_F = TypeVar("_F", bound=Callable[..., Any])


def parse_labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse labels from ``KEY=VALUE``; a callback for click."""
    labels = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        labels[key] = content
    return labels


_FIELDS: Final = tuple(field.name for field in ServiceFilter.DESCRIPTOR.fields)
_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "name_pattern": {"metavar": "PATTERN", "help": "Name matches this RE2 pattern (unanchored)."},
    "capability": {"type": CAPABILITY_NAME, "metavar": "NAME", "help": "Has this capability."},
    "capability_version": {"metavar": "RANGE", "help": "Version or range of the capability: 2.1.0, '^1.4'."},
    "health": {
        "type": click.Choice(tuple(STATUS_BY_WORD)),
        "multiple": True,
        "help": "Has this status; repeat to match any of several.",
    },
    "tags": {"multiple": True, "help": "Has this tag; repeat to match any of several."},
    "tag_match": {"flag_value": "all", "default": "unspecified", "help": "Match all tags instead of any."},
    "version": {"metavar": "RANGE", "help": "Version or range of the service: 1.0.0, '>=1.2 <2'."},
    "environment": {"help": "Runs in this environment."},
    "group": {"help": "Belongs to this group."},
    "labels": {
        "metavar": "KEY=VALUE",
        "multiple": True,
        "callback": parse_labels,
        "help": "Has this label; repeat to match all of several.",
    },
    "available": {"is_flag": True, "help": "Is healthy and not draining."},
}
"""Arguments of ``click.option`` for each field; a text field needs none."""


def filter_options(function: _F) -> _F:
    """Add the filter options to a command; ``pop_filter`` removes their values from the parameters."""
    for field in reversed(_FIELDS):
        default: dict[str, Any] = {"default": ""} if field in TEXT_FILTERS else {}
        function = click.option(filter_flag(field), field, **default, **_OPTIONS.get(field, {}))(function)
    return function


def pop_filter(parameters: dict[str, Any]) -> ServiceFilter:
    """Remove the values of the filter options from ``parameters`` and return them as a filter."""
    return make_filter(None, cast("FilterFields", {field: parameters.pop(field) for field in _FIELDS}))

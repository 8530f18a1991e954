"""The filter options of ``list`` and ``watch``."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from registry_cli.completion import CAPABILITY_NAME
from registry_client import HealthStatus, ServiceFilter
from registry_client.values import make_filter

_F = TypeVar("_F", bound=Callable[..., Any])

STATUSES: Final = tuple(name.removeprefix("HEALTH_STATUS_").lower() for name, number in HealthStatus.items() if number)


def parse_labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse labels from ``KEY=VALUE``; a callback for click."""
    labels = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        labels[key] = content
    return labels


_FILTER_OPTIONS: Final = (
    click.option("--name", metavar="PATTERN", default="", help="Name matches this RE2 pattern (unanchored)."),
    click.option("--capability", type=CAPABILITY_NAME, metavar="NAME", default="", help="Has this capability."),
    click.option(
        "--capability-version", metavar="RANGE", default="", help="Version or range of the capability: 2.1.0, '^1.4'."
    ),
    click.option(
        "--health", type=click.Choice(STATUSES), multiple=True, help="Has this status; repeat to match any of several."
    ),
    click.option("--tag", "tags", multiple=True, help="Has this tag; repeat to match any of several."),
    click.option("--all-tags", is_flag=True, help="Match all tags instead of any."),
    click.option("--version", metavar="RANGE", default="", help="Version or range of the service: 1.0.0, '>=1.2 <2'."),
    click.option("--environment", default="", help="Runs in this environment."),
    click.option("--group", default="", help="Belongs to this group."),
    click.option(
        "--label",
        "labels",
        metavar="KEY=VALUE",
        multiple=True,
        callback=parse_labels,
        help="Has this label; repeat to match all of several.",
    ),
)


def filter_options(function: _F) -> _F:
    """Add the filter options to a command; ``pop_filter`` removes their values from the parameters."""
    for option in reversed(_FILTER_OPTIONS):
        function = option(function)
    return function


def pop_filter(parameters: dict[str, Any]) -> ServiceFilter:
    """Remove the values of the filter options from ``parameters`` and return them as a filter."""
    return make_filter(
        None,
        {
            "name_pattern": parameters.pop("name"),
            "capability": parameters.pop("capability"),
            "capability_version": parameters.pop("capability_version"),
            "health": parameters.pop("health"),
            "tags": parameters.pop("tags"),
            "tag_match": "all" if parameters.pop("all_tags") else "unspecified",
            "version": parameters.pop("version"),
            "environment": parameters.pop("environment"),
            "group": parameters.pop("group"),
            "labels": parameters.pop("labels"),
        },
    )

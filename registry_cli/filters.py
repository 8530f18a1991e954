"""The fields of a filter as flags, the same for ``list`` and ``watch``."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from registry_cli.completion import CAPABILITY
from registry_client import HealthStatus, ServiceFilter
from registry_client.values import make_filter

_F = TypeVar("_F", bound=Callable[..., Any])

STATUSES: Final = tuple(name.removeprefix("HEALTH_STATUS_").lower() for name, number in HealthStatus.items() if number)


def labels_of(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Labels from ``KEY=VALUE``, as a callback of click's."""
    labels = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        labels[key] = content
    return labels


_OPTIONS: Final = (
    click.option("--name", metavar="PATTERN", default="", help="RE2 pattern that matches somewhere in the name."),
    click.option("--capability", type=CAPABILITY, metavar="NAME", default="", help="Has this capability."),
    click.option("--capability-version", metavar="RANGE", default="", help="In this version or range: 2.1.0, '^1.4'."),
    click.option("--health", type=click.Choice(STATUSES), multiple=True, help="Has this status; repeat for any of."),
    click.option("--tag", "tags", multiple=True, help="Has this tag; repeat for any of."),
    click.option("--all-tags", is_flag=True, help="Has all the tags, not any of them."),
    click.option("--version", metavar="RANGE", default="", help="Is of this version or range: 1.0.0, '>=1.2 <2'."),
    click.option("--environment", default="", help="Is in this environment."),
    click.option("--group", default="", help="Is in this group."),
    click.option(
        "--label",
        "labels",
        metavar="KEY=VALUE",
        multiple=True,
        callback=labels_of,
        help="Has this label; repeat for all of.",
    ),
)


def filter_options(function: _F) -> _F:
    """Adds the flags; ``filter_of`` takes what they gave out of the parameters."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def filter_of(parameters: dict[str, Any]) -> ServiceFilter:
    """The filter that the flags describe; takes them out of ``parameters``."""
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

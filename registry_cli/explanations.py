"""Explanations of empty results."""

from collections.abc import Iterable

from registry_cli.calls import CommandContext
from registry_client import RegistryError, ServiceFilter

_MAX_NAMES = 5
"""Unknown names for which similar ones are looked up."""


async def empty_result_text(context: CommandContext, service_filter: ServiceFilter) -> str:
    """Return why a filter matches no service."""
    try:
        return (await context.client.explain_discovery(service_filter)).summary
    except RegistryError:  # an earlier version of the registry
        return "no service matches"


async def print_similar_names(context: CommandContext, names: Iterable[str]) -> None:
    """Print registered names that resemble names that are not registered."""
    for name in list(names)[:_MAX_NAMES]:
        try:
            similar = (await context.client.explain_discovery(name=name)).similar_names
        except RegistryError:
            return
        if similar:
            context.out.print_notice(f"did you mean {' or '.join(similar)}?")

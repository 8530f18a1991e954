"""Explanations of empty results."""

from collections.abc import Sequence

from registry_cli.calls import CommandContext
from registry_client import RegistryError, ServiceFilter

_MAX_NAMES = 5
"""Unknown names that are explained."""


async def empty_result_text(context: CommandContext, service_filter: ServiceFilter) -> str:
    """Return why a filter matches no service."""
    try:
        return (await context.client.explain_discovery(service_filter)).summary
    except RegistryError:  # an earlier version of the registry
        return "no service matches"


async def print_reasons(context: CommandContext, names: Sequence[str]) -> None:
    """Print why names are not registered, as far as it is known, and registered names that resemble them."""
    for name in names[:_MAX_NAMES]:
        try:
            summary = (await context.client.explain_discovery(name=name)).summary
        except RegistryError:
            return
        if reason := summary.removeprefix(f"{name} is not registered").lstrip(".:; "):
            context.out.print_notice(reason if len(names) == 1 else f"{name}: {reason}")

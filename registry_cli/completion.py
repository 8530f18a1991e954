"""Names that complete themselves, live from the registry.

What a shell waits for while somebody presses TAB must be quick and must never fail: a registry that is away has no
names to offer.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import click
from click.shell_completion import CompletionItem

from registry_cli.calls import Connection
from registry_client import RegistryClient

_PATIENCE: Final = 1.0
"""Seconds that a person may wait for names."""
_MOST: Final = 200


class _Live(click.ParamType[str]):
    """A text that completes by asking the registry that the command line names."""

    name = "text"

    async def offers(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """What begins so."""
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Asks the registry."""

        async def ask() -> Sequence[str]:
            async with asyncio.timeout(_PATIENCE), Connection.of(ctx.params).client() as client:
                return await self.offers(client, incomplete)

        try:
            names = asyncio.run(ask())
        except Exception:  # noqa: BLE001 - whatever it was, an error among what somebody types helps nobody
            return []
        given = ctx.params.get(param.name or "") or ()
        return [CompletionItem(name) for name in names if name not in given]


class ServiceNames(_Live):
    """Names of services."""

    async def offers(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """Those that begin so."""
        pattern = f"^{re.escape(incomplete)}"
        page = await client.discover_services(name_pattern=pattern, page_size=_MOST, timeout=_PATIENCE)
        return [service.name for service in page.services if service.name.startswith(incomplete)]


class CapabilityNames(_Live):
    """Names of capabilities."""

    async def offers(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """Those that begin so."""
        summaries = await client.list_capabilities(timeout=_PATIENCE)
        return [each.name for each in summaries if each.name.startswith(incomplete)][:_MOST]


NAME: Final = ServiceNames()
CAPABILITY: Final = CapabilityNames()

"""Shell completion of service and capability names, with live names from the registry.

Completion must be fast and must never fail, because the shell waits for it: if the registry is unavailable, there are
no completions.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import click
from click.shell_completion import CompletionItem

from registry_cli.calls import Connection
from registry_client import RegistryClient

_TIMEOUT_SECONDS: Final = 1.0
_MAX_COMPLETIONS: Final = 200


class _RegistryName(click.ParamType[str]):
    """A text parameter with completions from the registry that the command line selects."""

    name = "text"

    async def find_names(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """Return the names that begin with a text."""
        raise NotImplementedError

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the completions for an incomplete name."""

        async def query() -> Sequence[str]:
            async with (
                asyncio.timeout(_TIMEOUT_SECONDS),
                Connection.from_parameters(ctx.params).create_client() as client,
            ):
                return await self.find_names(client, incomplete)

        try:
            names = asyncio.run(query())
        except Exception:  # noqa: BLE001 - an error message would garble the command line that is being typed
            return []
        entered = ctx.params.get(param.name or "") or ()
        return [CompletionItem(name) for name in names if name not in entered]


class ServiceNames(_RegistryName):
    """A service name."""

    async def find_names(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """Return the names that begin with a text."""
        pattern = f"^{re.escape(incomplete)}"
        page = await client.discover_services(
            name_pattern=pattern, page_size=_MAX_COMPLETIONS, timeout=_TIMEOUT_SECONDS
        )
        return [service.name for service in page.services if service.name.startswith(incomplete)]


class CapabilityNames(_RegistryName):
    """A capability name."""

    async def find_names(self, client: RegistryClient, incomplete: str) -> Sequence[str]:
        """Return the names that begin with a text."""
        summaries = await client.list_capabilities(timeout=_TIMEOUT_SECONDS)
        return [each.name for each in summaries if each.name.startswith(incomplete)][:_MAX_COMPLETIONS]


SERVICE_NAME: Final = ServiceNames()
CAPABILITY_NAME: Final = CapabilityNames()

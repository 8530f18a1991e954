"""Shell completion of service and capability names, with live names from the registry.

Completion must be fast and must never fail, because the shell waits for it: if the registry is unavailable, there are
no completions.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
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

    def __init__(self, find_names: Callable[[RegistryClient, str], Awaitable[Iterable[str]]]) -> None:
        self._find_names = find_names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the completions for an incomplete name."""

        async def query() -> Iterable[str]:
            async with (
                asyncio.timeout(_TIMEOUT_SECONDS),
                Connection.from_parameters(ctx.params).create_client() as client,
            ):
                return await self._find_names(client, incomplete)

        try:
            names = asyncio.run(query())
        except Exception:  # noqa: BLE001 - an error message would garble the command line that is being typed
            return []
        entered = ctx.params.get(param.name or "") or ()
        matching = [name for name in names if name.startswith(incomplete) and name not in entered]
        return [CompletionItem(name) for name in matching[:_MAX_COMPLETIONS]]


async def _service_names(client: RegistryClient, incomplete: str) -> Iterable[str]:
    pattern = f"^{re.escape(incomplete)}"
    page = await client.discover_services(name_pattern=pattern, page_size=_MAX_COMPLETIONS, timeout=_TIMEOUT_SECONDS)
    return [service.name for service in page.services]


async def _capability_names(client: RegistryClient, _: str) -> Iterable[str]:
    return [each.name for each in await client.list_capabilities(timeout=_TIMEOUT_SECONDS)]


SERVICE_NAME: Final = _RegistryName(_service_names)
CAPABILITY_NAME: Final = _RegistryName(_capability_names)

"""A registry within another Python program, without the transports."""

import asyncio
from contextlib import suppress
from typing import Any

from registry_server.app import first_error, open_parts
from registry_server.config import Settings
from registry_server.errors import ConfigurationError
from registry_server.registry import ServiceRegistry
from registry_server.tasks import cancel
from registry_server.telemetry.logs import log_as_a_library


async def open_registry(settings: Settings | None = None) -> ServiceRegistry:
    """Opens a registry, and waits until it knows what is registered.

    Several programs and servers may do so on one Redis; they are one registry.

    Args:
        settings: Those of a server; ``None`` = its defaults, whatever the environment says, with an embedded Redis.

    Returns:
        The registry. It is to be closed, by ``close`` or as an async context manager.

    Raises:
        ConfigurationError: It cannot be run as it is configured.
    """
    log_as_a_library()
    opened: asyncio.Future[ServiceRegistry] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()

    async def run() -> None:
        # In a task of its own: whoever closes a registry need not be who opened it.
        async with open_parts(settings or Settings()) as parts:
            await parts.loaded.wait()
            opened.set_result(parts.registry)
            await closing.wait()

    running = asyncio.create_task(run(), name="embedded-registry")
    try:
        waited: list[asyncio.Future[Any]] = [opened, running]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await cancel([running])
        raise
    if not opened.done():
        failure: BaseException | None = None
        try:
            await running
        except* ConfigurationError as group:
            failure = first_error(group)
        if failure is not None:
            raise failure

    async def close() -> None:
        closing.set()
        with suppress(asyncio.CancelledError):
            await running

    registry = await opened
    registry.closes_by(close)
    return registry

"""``EmbeddedRegistry``: the registry inside another Python program."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self

from registry_server.app import open_parts
from registry_server.catalog import Replica
from registry_server.config import Settings
from registry_server.embedding.listeners import Listeners
from registry_server.instrumentation.logs import configure_library_logging
from registry_server.registry import ServiceRegistry
from registry_server.runtime.tasks import cancel


class EmbeddedRegistry(ServiceRegistry):
    """A ``ServiceRegistry`` with callbacks for changes, which the program closes when it is done."""

    def __init__(self, *, replica: Replica, max_pending_events: int, **parts: Any) -> None:
        """Combine the parts; ``open_registry`` does this.

        Args:
            replica: The copy in memory.
            max_pending_events: Number of events that may wait for slow callbacks.
            parts: The other arguments of ``ServiceRegistry``.
        """
        super().__init__(replica=replica, **parts)
        self._listeners = Listeners(replica, max_pending=max_pending_events)
        self._closing = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: Settings | None = None) -> Self:
        """Open a registry; see ``open_registry``."""
        configure_library_logging()
        settings = settings or Settings()
        opened: asyncio.Future[Self] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            # In its own task: the task that closes the registry need not be the one that opened it.
            make_registry = partial(cls, max_pending_events=settings.watch.buffer_events)
            async with open_parts(settings, make_registry) as parts:
                await parts.loaded.wait()
                registry = parts.registry
                assert isinstance(registry, cls)  # noqa: S101 - made by make_registry
                opened.set_result(registry)
                await registry._run_until_closed()  # noqa: SLF001 - of this class

        running = asyncio.create_task(run(), name="embedded-registry")
        try:
            waited: list[asyncio.Future[Any]] = [opened, running]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await cancel([running])
            raise
        if not opened.done():
            await running
        registry = await opened
        registry._running = running  # noqa: SLF001
        return registry

    def on(self, event: str, callback: Callable[..., Any]) -> Callable[[], None]:
        """Call a function or coroutine function for every change from now on, in revision order.

        ========================== ===============================================================
        ``service:registered``     ``callback(service)``
        ``service:updated``        ``callback(service)``
        ``service:unregistered``   ``callback(name)``
        ``service:health:changed`` ``callback(name, before, after)``, values of ``HealthStatus``
        ``registry:error``         ``callback(error)``
        ========================== ===============================================================

        A callback that raises is logged and stays registered. Changes do not wait for callbacks: when too many events
        are pending they are dropped, and ``registry:error`` reports it with a ``WatcherTooSlow``.

        Returns:
            A function that removes the callback.

        Raises:
            ValueError: There is no event of this name.
        """
        return self._listeners.add_listener(event, callback)

    async def close(self) -> None:
        """Stop the registry and everything that it runs; later calls do nothing."""
        self._closing.set()
        if self._running is not None:
            with suppress(asyncio.CancelledError):
                await self._running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run_until_closed(self) -> None:
        async with asyncio.TaskGroup() as group:  # an error of the listeners ends the registry
            listeners = group.create_task(self._listeners.run(), name="listeners")
            await self._closing.wait()
            listeners.cancel()


async def open_registry(settings: Settings | None = None) -> EmbeddedRegistry:
    """Open a registry and wait until its catalog is loaded.

    Several programs and servers may open one on the same Redis; together they are one registry.

    Args:
        settings: Settings as for a server; ``None`` = the defaults, independent of the environment, with an embedded
            Redis.

    Returns:
        The registry. Close it with ``close`` or use it as an async context manager.

    Raises:
        ConfigurationError: The registry cannot start with these settings.
    """
    return await EmbeddedRegistry.open(settings)

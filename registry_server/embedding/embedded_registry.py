"""``EmbeddedRegistry``: the registry inside another Python program."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from google.protobuf.field_mask_pb2 import FieldMask

from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from registry_server.app import open_parts
from registry_server.catalog import Replica
from registry_server.config import Settings
from registry_server.embedding.documents import Document, read_filter, read_registration, read_update
from registry_server.embedding.listeners import Listeners
from registry_server.gateway import rest_application
from registry_server.instrumentation.logs import configure_library_logging
from registry_server.parts import Parts
from registry_server.registry import ServiceRegistry
from registry_server.runtime.tasks import cancel

if TYPE_CHECKING:
    from aiohttp import web


class EmbeddedRegistry(ServiceRegistry):
    """A ``ServiceRegistry`` with callbacks for changes, which the program closes when it is done.

    ``register``, ``discover`` and ``update_service`` also accept dictionaries with the keys of OSSA's types.
    """

    _parts: Parts

    def __init__(self, *, replica: Replica, settings: Settings, **parts: Any) -> None:
        """Combine the parts; ``open_registry`` does this.

        Args:
            replica: The copy in memory.
            settings: Settings of the registry.
            parts: The other arguments of ``ServiceRegistry``.
        """
        super().__init__(replica=replica, **parts)
        self._settings = settings
        self._listeners = Listeners(replica, max_pending=settings.watch.buffer_events)
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
            async with open_parts(settings, partial(cls, settings=settings)) as parts:
                await parts.loaded.wait()
                registry = parts.registry
                assert isinstance(registry, cls)  # noqa: S101 - made by the argument
                registry._parts = parts  # noqa: SLF001 - of this class
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

    async def register(self, service: Service | Document, *, create_only: bool = False) -> Service:
        """Register a service or replace its content; renew its lease; see ``ServiceRegistry.register``."""
        if isinstance(service, Mapping):
            service = read_registration(service)
        return await super().register(service, create_only=create_only)

    async def discover(self, filter_: ServiceFilter | Document | None = None) -> list[Service]:
        """Return all matching services, ordered by name."""
        return await super().discover(read_filter(filter_) if isinstance(filter_, Mapping) else filter_)

    async def update_service(
        self,
        service: Service | str,
        mask: FieldMask | Document | None = None,
        *,
        expected_revision: int = 0,
        renew: bool = False,
    ) -> Service:
        """Update a service, also given as its name and a dictionary of changes; see ``ServiceRegistry.update_service``.

        Raises:
            TypeError: A name without a dictionary, or a dictionary without a name.
        """
        if isinstance(service, str) and isinstance(mask, Mapping):
            service, mask = read_update(mask, service)
        if isinstance(service, str) or isinstance(mask, Mapping):
            raise TypeError("pass a Service and a FieldMask, or a name and a dictionary of changes")
        return await super().update_service(service, mask, expected_revision=expected_revision, renew=renew)

    def rest_api(self) -> "web.Application":
        """Return the REST API as an application for ``add_subapp`` of an aiohttp application.

        ``app.add_subapp("/api/v1/registry", registry.rest_api())`` serves the paths of docs/rest.md below that prefix,
        and nothing else. The settings ``security``, ``limits`` and ``http`` apply to its requests. Close the registry
        after the application has stopped.

        Raises:
            ConfigurationError: The policy is not valid.
        """
        return rest_application(self, self._settings, problems=self._parts.problems, tracer=self._parts.tracer)

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

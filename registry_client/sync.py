"""``SyncRegistryClient``: the calls that scripts need, without ``async``."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from registry_client.channel import Tls
from registry_client.client import DEFAULT_TIMEOUT, RegistryClient

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _blocking(
    method: Callable[Concatenate[RegistryClient, _P], Coroutine[Any, Any, _R]],
) -> "Callable[Concatenate[SyncRegistryClient, _P], _R]":
    """The same method, which waits for its answer."""

    @functools.wraps(method)
    def call(self: "SyncRegistryClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self._check()
        return self._runner.run(method(self._client, *args, **kwargs))

    return call


class SyncRegistryClient:
    """A ``RegistryClient`` for scripts: the same calls and errors, each of which waits.

    There is no thread behind it: between calls nothing runs. So it has no registrations, watches and caches, which need
    something that does. It belongs to one thread, and cannot be used within an event loop.

    Args:
        target: Address of a registry, such as ``localhost:50051``, or several of the same registry.
        tls: How to secure the connection; unset = not at all.
        token: Bearer token, or a function that gives the one that is valid now.
        timeout: Seconds for a call with all its tries, unless the call says otherwise.
        session: Whether reads wait for the highest revision that this client has seen.
    """

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:50051",
        *,
        tls: Tls | None = None,
        token: str | Callable[[], str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        session: bool = True,
    ) -> None:
        self._runner = asyncio.Runner()
        self._closed = False
        self._client = RegistryClient(target, tls=tls, token=token, timeout=timeout, session=session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections. Idempotent."""
        if not self._closed:
            self._check()
            self._closed = True
            self._runner.run(self._client.close())
            self._runner.close()

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("this client is closed")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # as it should be
        raise RuntimeError("this client would stop the running event loop; use RegistryClient there")

    register_service = _blocking(RegistryClient.register_service)
    batch_register_services = _blocking(RegistryClient.batch_register_services)
    get_service = _blocking(RegistryClient.get_service)
    discover_services = _blocking(RegistryClient.discover_services)
    find_services = _blocking(RegistryClient.find_services)
    update_service = _blocking(RegistryClient.update_service)
    unregister_service = _blocking(RegistryClient.unregister_service)
    heartbeat = _blocking(RegistryClient.heartbeat)
    get_service_health = _blocking(RegistryClient.get_service_health)
    report_service_health = _blocking(RegistryClient.report_service_health)
    check_service_health = _blocking(RegistryClient.check_service_health)
    list_capabilities = _blocking(RegistryClient.list_capabilities)
    get_stats = _blocking(RegistryClient.get_stats)
    get_registry_health = _blocking(RegistryClient.get_registry_health)
    cleanup = _blocking(RegistryClient.cleanup)

"""``SyncRegistryClient``: the unary calls for scripts, without ``async``."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from registry_client.channel import Tls
from registry_client.client import DEFAULT_TIMEOUT, RegistryClient
from registry_client.errors import DeadlineExceeded
from registry_client.forks import check_process, is_broken_by_fork

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _blocking(
    method: Callable[Concatenate[RegistryClient, _P], Coroutine[Any, Any, _R]],
) -> "Callable[Concatenate[SyncRegistryClient, _P], _R]":
    """Return a synchronous version of a method, which blocks until the response arrives."""

    @functools.wraps(method)
    def call(self: "SyncRegistryClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self._check_usable()
        timeout: Any = kwargs.get("timeout")
        seconds = self._timeout if timeout is None else timeout
        if not self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded(f"calls of other threads used this client for {seconds:g} s; use several clients")
        try:
            self._check_usable()
            return self._runner.run(method(self._client, *args, **kwargs))
        finally:
            self._lock.release()

    return call


class SyncRegistryClient:
    """A blocking ``RegistryClient`` for scripts, with the same calls and errors.

    It has no background thread, so nothing runs between calls. For that reason it offers no registrations, watches and
    caches. Several threads may share it: their calls are made one after another, and waiting for the others counts
    towards the timeout. It cannot be used in a running event loop, nor in a child process of the one that opened it.

    Args:
        target: Address of a registry, such as ``localhost:50051``, or several addresses of the same registry.
        tls: TLS configuration; without it the connection is not encrypted.
        token: Bearer token, or a function that returns the current one.
        timeout: Seconds for a call with all its attempts, unless the call sets its own.
        session: Whether reads wait for the highest revision that this client has seen.
        proxy: URL of an HTTP proxy; true = by the environment, false = none.
    """

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:50051",
        *,
        tls: Tls | None = None,
        token: str | Callable[[], str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        session: bool = True,
        proxy: str | bool = True,
    ) -> None:
        self._runner = asyncio.Runner()
        self._lock = threading.Lock()  # held during a call: a runner executes one at a time
        self._timeout = timeout
        self._closed = False
        self._client = RegistryClient(target, tls=tls, token=token, timeout=timeout, session=session, proxy=proxy)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, after calls in flight. Idempotent; does nothing in a forked child process."""
        if self._closed or is_broken_by_fork():
            return
        self._check_usable()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._runner.run(self._client.close())
                self._runner.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
        check_process()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise RuntimeError("SyncRegistryClient would block the running event loop; use RegistryClient instead")

    register_service = _blocking(RegistryClient.register_service)
    batch_register_services = _blocking(RegistryClient.batch_register_services)
    get_service = _blocking(RegistryClient.get_service)
    discover_services = _blocking(RegistryClient.discover_services)
    find_services = _blocking(RegistryClient.find_services)
    list_events = _blocking(RegistryClient.list_events)
    search_services = _blocking(RegistryClient.search_services)
    explain_discovery = _blocking(RegistryClient.explain_discovery)
    update_service = _blocking(RegistryClient.update_service)
    unregister_service = _blocking(RegistryClient.unregister_service)
    heartbeat = _blocking(RegistryClient.heartbeat)
    get_service_health = _blocking(RegistryClient.get_service_health)
    get_service_health_details = _blocking(RegistryClient.get_service_health_details)
    report_service_health = _blocking(RegistryClient.report_service_health)
    check_service_health = _blocking(RegistryClient.check_service_health)
    set_maintenance = _blocking(RegistryClient.set_maintenance)
    list_capabilities = _blocking(RegistryClient.list_capabilities)
    get_stats = _blocking(RegistryClient.get_stats)
    get_registry_health = _blocking(RegistryClient.get_registry_health)
    cleanup = _blocking(RegistryClient.cleanup)

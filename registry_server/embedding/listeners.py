"""``Listeners``: callbacks of a program that embeds the registry."""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from ossa.registry.v1.event_pb2 import EventType
from ossa_common.event_names import EVENT_NAMES, REGISTRY_ERROR
from registry_server.catalog import Change, Replica
from registry_server.errors import WatcherTooSlow

LISTENER_EVENTS: Final = (
    "service:registered",
    "service:updated",
    "service:unregistered",
    "service:health:changed",
    REGISTRY_ERROR,
)
"""Events that callbacks can be registered for."""

log = structlog.get_logger(__name__)


class Listeners:
    """Runs callbacks for every change, one at a time in revision order, without delaying the change itself."""

    def __init__(self, replica: Replica, *, max_pending: int) -> None:
        """Subscribe to the changes of a replica.

        Args:
            replica: The copy in memory.
            max_pending: Number of events that may wait for slow callbacks; beyond it all pending events are dropped and
                ``registry:error`` reports it.
        """
        self._callbacks: dict[str, list[Callable[..., Any]]] = {name: [] for name in LISTENER_EVENTS}
        self._max_pending = max_pending
        self._pending: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._wakeup = asyncio.Event()
        replica.on_applied.append(self._on_applied)

    def add_listener(self, event: str, callback: Callable[..., Any]) -> Callable[[], None]:
        """Register a callback and return a function that removes it.

        Raises:
            ValueError: There is no event of this name.
        """
        if event not in self._callbacks:
            raise ValueError(f"unknown event {event!r}; the events are {', '.join(LISTENER_EVENTS)}")
        callbacks = self._callbacks[event]
        callbacks.append(callback)

        def remove() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return remove

    async def run(self) -> None:
        """Run callbacks until cancelled."""
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._pending:
                event, arguments = self._pending.popleft()
                for callback in list(self._callbacks[event]):
                    await _call(event, callback, arguments)
                await asyncio.sleep(0)  # callbacks must not block the event loop for long

    def _on_applied(self, change: Change) -> None:
        event = EVENT_NAMES[change.type]
        if not self._callbacks.get(event):
            return
        if len(self._pending) >= self._max_pending:
            self._pending.clear()
            self._pending.append((REGISTRY_ERROR, (WatcherTooSlow(f"{self._max_pending} events were buffered"),)))
        self._pending.append((event, _arguments(change)))
        self._wakeup.set()


def _arguments(change: Change) -> tuple[Any, ...]:
    """Return the arguments that the OSSA reference implementation passes to callbacks of this event."""
    match change.type:
        case EventType.EVENT_TYPE_SERVICE_UNREGISTERED:
            return (change.name,)
        case EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED if change.before and change.after:
            return change.name, change.before.status, change.after.status
        case EventType.EVENT_TYPE_REGISTRY_ERROR:
            return (RuntimeError(change.error),)
        case _:
            return (change.after.message() if change.after else None,)


async def _call(event: str, callback: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        result = callback(*arguments)
        if inspect.isawaitable(result):
            await result
    except Exception:
        log.exception("listener callback failed", event_name=event)  # the other callbacks still run

"""``Listeners``: callbacks of a program that has a registry in itself."""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from ossa.registry.v1.event_pb2 import EventType
from registry_server.catalog import Change, Replica
from registry_server.errors import WatcherTooSlow
from registry_server.model.event_names import EVENT_NAMES, REGISTRY_ERROR

LISTENED: Final = (
    "service:registered",
    "service:updated",
    "service:unregistered",
    "service:health:changed",
    REGISTRY_ERROR,
)
"""Events that there are callbacks for."""

log = structlog.get_logger(__name__)


class Listeners:
    """Calls back for every change, one after the other in revision order, without holding up whoever applies it."""

    def __init__(self, replica: Replica, *, most_waiting: int) -> None:
        """Prepares it.

        Args:
            replica: Whose changes.
            most_waiting: How many events may wait for callbacks that are slow; past it all of them are dropped, and
                ``registry:error`` says so.
        """
        self._callbacks: dict[str, list[Callable[..., Any]]] = {name: [] for name in LISTENED}
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._news = asyncio.Event()
        replica.on_applied.append(self._on_applied)

    def add(self, event: str, callback: Callable[..., Any]) -> Callable[[], None]:
        """Adds a callback; gives a function that removes it.

        Raises:
            ValueError: There is no such event.
        """
        if event not in self._callbacks:
            raise ValueError(f"there is no event {event!r}; there are {', '.join(LISTENED)}")
        callbacks = self._callbacks[event]
        callbacks.append(callback)

        def remove() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return remove

    async def run(self) -> None:
        """Calls back, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                event, arguments = self._waiting.popleft()
                for callback in list(self._callbacks[event]):
                    await _call(event, callback, arguments)
                await asyncio.sleep(0)  # many callbacks must not hold up calls

    def _on_applied(self, change: Change) -> None:
        event = EVENT_NAMES[change.type]
        if not self._callbacks.get(event):
            return
        if len(self._waiting) >= self._most_waiting:
            self._waiting.clear()
            self._waiting.append((REGISTRY_ERROR, (WatcherTooSlow(self._most_waiting),)))
        self._waiting.append((event, _arguments(change)))
        self._news.set()


def _arguments(change: Change) -> tuple[Any, ...]:
    """What the seed gives to callbacks of this kind of event."""
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
        log.exception("a callback failed", event_name=event)  # the next one is not to blame

"""``Problems``: conditions of this process that an operator must correct, shown until they end."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from registry_server.errors import ConfigurationError
from registry_server.runtime.tasks import keep_running

_MIN_LOG_SECONDS: Final = 1.0
_FAILURE_SECONDS: Final = 60.0
"""How long a failure of a task is shown; a task that fails again and again is restarted at least every 5 seconds."""

log = structlog.get_logger(__name__)


class Problems:
    """What is wrong now, by key. ``GET /health`` shows it without a credential: texts contain no host and no secret."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start without problems; ``monotonic`` is the clock for those that end by themselves."""
        self._monotonic = monotonic
        self._texts: dict[str, str] = {}
        self._ends: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    @property
    def active(self) -> Mapping[str, str]:
        """Texts of the current problems by their key."""
        if self._texts:
            now = self._monotonic()
            for key in [key for key, end in self._ends.items() if end <= now]:
                self.resolve(key)
        return self._texts

    def report(self, key: str, text: str, *, seconds: float = math.inf) -> None:
        """Report a problem; log it when it begins and when its text changes, at most once a second.

        Args:
            key: Stable words that identify it in metrics and alerts, such as ``store_maxmemory_policy``.
            text: What is wrong, and what to do.
            seconds: Time after which it ends unless it is reported again.
        """
        now = self._monotonic()
        self._ends[key] = now + seconds
        before = self._texts.get(key)
        self._texts[key] = text
        if before is None or (before != text and now - self._logged[key] >= _MIN_LOG_SECONDS):
            self._logged[key] = now
            log.warning("problem reported", problem=key, text=text)

    async def keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run a background task until cancelled, whatever it raises; a failure is a problem for a minute.

        Args:
            name: Name of the task, in lower case with underscores.
            work: The task; see ``runtime.tasks.keep_running``.

        Raises:
            ConfigurationError: The task cannot work with the configuration.
        """

        def on_failure(error: Exception) -> None:
            if isinstance(error, ConfigurationError):
                raise error
            key, text = f"task_{name}", f"{name} failed: unexpected {type(error).__name__}; see the log"
            if self.active.get(key) != text:
                log.error("background task failed", task=name, exc_info=error)
            self.report(key, text, seconds=_FAILURE_SECONDS)

        await keep_running(work, on_failure)

    def resolve(self, key: str) -> None:
        """End a problem; do nothing if there is none under this key."""
        if self._texts.pop(key, None) is not None:
            del self._ends[key]
            log.info("problem resolved", problem=key)

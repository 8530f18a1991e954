"""``Problems``: conditions of this process that an operator must correct, shown until they end."""

import math
import time
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger(__name__)


class Problems:
    """What is wrong now, by key. ``GET /health`` shows it without a credential: texts contain no host and no secret."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start without problems; ``monotonic`` is the clock for those that end by themselves."""
        self._monotonic = monotonic
        self._texts: dict[str, str] = {}
        self._ends: dict[str, float] = {}

    @property
    def active(self) -> Mapping[str, str]:
        """Texts of the current problems by their key."""
        if self._texts:
            now = self._monotonic()
            for key in [key for key, end in self._ends.items() if end <= now]:
                self.resolve(key)
        return self._texts

    def report(self, key: str, text: str, *, seconds: float = math.inf) -> None:
        """Report a problem; log it when it begins and when its text changes.

        Args:
            key: Stable words that identify it in metrics and alerts, such as ``store_maxmemory_policy``.
            text: What is wrong, and what to do.
            seconds: Time after which it ends unless it is reported again.
        """
        self._ends[key] = self._monotonic() + seconds
        if self._texts.get(key) != text:
            self._texts[key] = text
            log.warning("problem reported", problem=key, text=text)

    def resolve(self, key: str) -> None:
        """End a problem; do nothing if there is none under this key."""
        if self._texts.pop(key, None) is not None:
            del self._ends[key]
            log.info("problem resolved", problem=key)

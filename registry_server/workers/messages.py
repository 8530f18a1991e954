"""What supervisor and worker say to each other, in frames: down a pickled ``Setup``, up JSON objects."""

from typing import Any, Final, NamedTuple

from registry_server.config import Settings


class Setup(NamedTuple):
    """The first frame down: what a worker has to know."""

    number: int
    """Which of the workers it is, counted from 1."""
    settings: Settings


Message = dict[str, Any]
"""Up: ``{"kind": READY | ALIVE | REFUSED}``."""

READY: Final = "ready"
"""It takes calls, and its catalog is loaded."""
ALIVE: Final = "alive"
"""It still runs; said each second."""
REFUSED: Final = "refused"
"""It cannot serve as it is configured; ``why`` says what is wrong."""

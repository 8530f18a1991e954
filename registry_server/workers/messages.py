"""What supervisor and worker say to each other, in frames: first a pickled ``Setup``, then JSON objects both ways."""

from typing import Any, Final, NamedTuple

from registry_server.config import Settings


class Setup(NamedTuple):
    """The first frame down: what a worker has to know."""

    number: int
    """Which of the workers it is, counted from 1."""
    settings: Settings


Message = dict[str, Any]
"""``{"kind": one of these, ...}``."""

READY: Final = "ready"
"""Up: it takes calls, and its catalog is loaded."""
ALIVE: Final = "alive"
"""Up: it still runs; said each second."""
REFUSED: Final = "refused"
"""Up: it cannot serve as it is configured; ``why`` says what is wrong."""
COLLECT: Final = "collect"
"""Up: somebody asks for the metrics of all; ``id`` is to come back."""
COLLECTED: Final = "collected"
"""Down: the metrics that ``id`` asked for, the ``texts`` of those who told them."""
TELL: Final = "tell"
"""Down: asks for the metrics of the worker itself; ``id`` is to come back."""
TOLD: Final = "told"
"""Up: those of ``id``, as ``text``."""

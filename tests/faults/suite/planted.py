"""Registries with a bug that the checker has to find: ``python -m tests.faults.suite.planted BUG [FLAGS]``.

Each bug is patched into the program at run time.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

from ossa.registry.v1.service_pb2 import Service
from registry_server.__main__ import serve
from registry_server.replication import Writes
from registry_server.store.lua import Scripts
from registry_server.watch import Watcher

_EVERY_NTH_CALL = 10
_EARLY_MS = 4_990

_count = itertools.count(1)


def _is_faulty_call() -> bool:
    return next(_count) % _EVERY_NTH_CALL == 0


def dropped_event() -> None:
    """A watcher does not receive a change."""
    offer = Watcher.offer

    def offer_some(self: Watcher, *args: Any) -> None:
        if not _is_faulty_call():
            offer(self, *args)

    Watcher.offer = offer_some  # type: ignore[method-assign,assignment]


def repeated_event() -> None:
    """A watcher receives a change twice."""
    offer = Watcher.offer

    def offer_twice(self: Watcher, *args: Any) -> None:
        offer(self, *args)
        if _is_faulty_call():
            offer(self, *args)

    Watcher.offer = offer_twice  # type: ignore[method-assign,assignment]


def lost_write() -> None:
    """A write is acknowledged but never sent to Redis."""
    write = Writes.write_service

    async def write_some(self: Writes, before: Service | None, after: Service, *args: Any, **fields: Any) -> Any:
        if before is not None and _is_faulty_call():
            after.revision = before.revision
            return after
        return await write(self, before, after, *args, **fields)

    Writes.write_service = write_some  # type: ignore[method-assign]


def repeated_revision() -> None:
    """A write returns the revision of the previous change."""
    write = Writes.write_service

    async def write_and_decrement(self: Writes, *args: Any, **fields: Any) -> Any:
        outcome = await write(self, *args, **fields)
        if isinstance(outcome, Service) and _is_faulty_call():
            outcome.revision -= 1
        return outcome

    Writes.write_service = write_and_decrement  # type: ignore[method-assign]


def early_expiry() -> None:
    """Leases expire almost immediately."""
    _patch_script("sweep", "'-inf', int(now), 'LIMIT'", f"'-inf', int(now + {_EARLY_MS}), 'LIMIT'")


BUGS: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        dropped_event,
        repeated_event,
        lost_write,
        repeated_revision,
        early_expiry,
    )
}


def _patch_script(name: str, old: str, new: str) -> None:
    original = Scripts.__init__

    def patched(self: Scripts) -> None:
        original(self)
        assert old in self.sources[name]
        self.sources[name] = self.sources[name].replace(old, new)
        self.digests[name] = hashlib.sha1(self.sources[name].encode(), usedforsecurity=False).hexdigest()

    Scripts.__init__ = patched  # type: ignore[method-assign]


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(serve(sys.argv[2:]))

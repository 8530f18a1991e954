"""Registries with a bug that the checker has to find: ``python -m tests.faults.suite.planted BUG [FLAGS]``.

Each bug is put into the running program from here; nothing of the program knows of it.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable
from typing import Any

from ossa.registry.v1.service_pb2 import Service
from registry_server.__main__ import serve
from registry_server.replication import Writes
from registry_server.store import RedisStore
from registry_server.store.lua import Scripts
from registry_server.watch import Watcher

_NOW_AND_THEN = 10
_EARLY_MS = 4_990

_count = itertools.count(1)


def _happens() -> bool:
    return next(_count) % _NOW_AND_THEN == 0


def dropped_event() -> None:
    """A watcher is not told of a change."""
    offer = Watcher.offer

    def offer_most(self: Watcher, *args: Any) -> None:
        if not _happens():
            offer(self, *args)

    Watcher.offer = offer_most  # type: ignore[method-assign,assignment]


def repeated_event() -> None:
    """A watcher is told of a change twice."""
    offer = Watcher.offer

    def offer_twice(self: Watcher, *args: Any) -> None:
        offer(self, *args)
        if _happens():
            offer(self, *args)

    Watcher.offer = offer_twice  # type: ignore[method-assign,assignment]


def lost_write() -> None:
    """A write is acknowledged that was never sent to Redis."""
    put = RedisStore.put

    async def put_most(self: RedisStore, service: Service, **more: Any) -> Any:
        if more["expected"] and _happens():
            return more["expected"]  # a revision that everybody has
        return await put(self, service, **more)

    RedisStore.put = put_most  # type: ignore[method-assign]


def repeated_revision() -> None:
    """A write is answered with the revision of the change before it."""
    put = Writes.write_service

    async def put_back(self: Writes, *args: Any, **more: Any) -> Any:
        outcome = await put(self, *args, **more)
        if isinstance(outcome, Service) and _happens():
            outcome.revision -= 1
        return outcome

    Writes.write_service = put_back  # type: ignore[method-assign]


def early_expiry() -> None:
    """Leases end as soon as they begin."""
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
    begin = Scripts.__init__

    def patched(self: Scripts) -> None:
        begin(self)
        assert old in self.sources[name]
        self.sources[name] = self.sources[name].replace(old, new)
        self.digests[name] = hashlib.sha1(self.sources[name].encode(), usedforsecurity=False).hexdigest()

    Scripts.__init__ = patched  # type: ignore[method-assign]


if __name__ == "__main__":
    BUGS[sys.argv[1]]()
    sys.exit(serve(sys.argv[2:]))

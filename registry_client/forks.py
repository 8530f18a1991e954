"""Detection of child processes in which gRPC does not work, because they were forked while a client was open."""

import os
from typing import Final
from weakref import WeakSet

import grpc

_open_channels: "WeakSet[grpc.aio.Channel]" = WeakSet()
_inherited_channels: Final[list[grpc.aio.Channel]] = []
"""Channels that were open when this process was forked. They are kept, because a child process cannot close them: gRPC
would wait for a thread that exists only in the parent, and their event loops share an epoll instance with it."""


def track_channel(channel: grpc.aio.Channel) -> None:
    """Remember a channel until it is closed and released: gRPC's thread runs until then."""
    _open_channels.add(channel)


def is_broken_by_fork() -> bool:
    """Return whether this process was forked from one with an open client, so that gRPC does not work in it."""
    return bool(_inherited_channels)


def check_process() -> None:
    """Check that gRPC works in this process.

    Raises:
        RuntimeError: The process was forked while a client was open.
    """
    if is_broken_by_fork():
        raise RuntimeError(
            "this process was forked while a client of the registry was open, so gRPC does not work in it: open clients"
            " only after the fork, or use the start method 'spawn' or 'forkserver' of multiprocessing"
        )


def _after_fork_in_child() -> None:
    _inherited_channels.extend(_open_channels)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork_in_child)

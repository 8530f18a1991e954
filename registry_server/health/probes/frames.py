"""What the registry and its probe process say to each other: frames of a length (4 bytes, big-endian) and bytes.

Down go pickles, which we made; up comes JSON, since the worker has read what strangers sent.
"""

import asyncio
import struct
from typing import Final, NamedTuple

from registry_server.config import LogSettings, Network

_LENGTH: Final = struct.Struct("!I")


class Setup(NamedTuple):
    """The first frame down: what a worker has to know."""

    allowed: tuple[Network, ...]
    denied: tuple[Network, ...]
    logs: LogSettings


def framed(content: bytes) -> bytes:
    """Makes a frame."""
    return _LENGTH.pack(len(content)) + content


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Reads a frame; ``None`` at the end of the connection."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None

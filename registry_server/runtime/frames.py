"""Messages between a process of the registry and one that it started: a length (4 bytes, big-endian) and bytes."""

import asyncio
import struct
from typing import Final

_LENGTH: Final = struct.Struct("!I")


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

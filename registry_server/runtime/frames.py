"""Messages between a registry process and its child processes: a length (4 bytes, big-endian) and the content."""

import asyncio
import struct
from typing import Final

_LENGTH: Final = struct.Struct("!I")


def encode_frame(content: bytes) -> bytes:
    """Return the content with its length in front."""
    return _LENGTH.pack(len(content)) + content


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Return the content of the next frame, or ``None`` when the connection has ended."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None

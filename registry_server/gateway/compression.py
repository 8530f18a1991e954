"""gzip: of answers, within a budget of CPU time, and of request bodies, within their maximum size."""

import asyncio
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web

from registry_server.catalog import Compressed
from registry_server.gateway.answers import Answer
from registry_server.runtime.token_buckets import TokenBuckets

MIN_COMPRESSED_BYTES: Final = 1_024
"""Smaller answers hardly shrink and fit in one packet anyway."""
COMPRESSED_BYTES_PER_SECOND: Final = 32 << 20
"""Bytes of answers to compress in a second, about a third of a CPU; beyond it answers are sent as they are."""
SLICE_BYTES: Final = 64 << 10
"""Bytes to compress, or to inflate to, in one turn of the event loop: about 1 ms."""

_RAW: Final = -15  # wbits
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_GZIP_OR_ZLIB: Final = 47
_NOT_GZIP: Final = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")
_INFLATED_ENCODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})


class InvalidEncoding(Exception):
    """A body is not encoded as its ``Content-Encoding`` declares; the text completes "the body ..."."""


def accepts_gzip(request: web.BaseRequest) -> bool:
    """Return whether the client accepts gzip; aiohttp's own check ignores ``gzip;q=0``."""
    accepted = request.headers.get("Accept-Encoding", "").lower()
    return "gzip" in accepted and not _NOT_GZIP.search(accepted)


class Compression:
    """Compresses answers while the budget lasts."""

    def __init__(
        self, bytes_per_second: int = COMPRESSED_BYTES_PER_SECOND, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the budget; a second's worth may be used at once."""
        self._bytes_per_second = bytes_per_second
        self._buckets = TokenBuckets(monotonic)

    def take(self, size: int) -> bool:
        """Take bytes from the budget; return whether it had them."""
        return not self._buckets.take(None, self._bytes_per_second, self._bytes_per_second, size)

    async def compress(self, answer: Answer) -> None:
        """Compress the body of an answer, unless it is small or the budget is spent."""
        body = answer.body
        if len(body) < MIN_COMPRESSED_BYTES or "Content-Encoding" in answer.headers or not self.take(len(body)):
            return
        answer.body = end_gzip(await begin_gzip(body), b"")
        answer.headers["Content-Encoding"] = "gzip"


async def begin_gzip(content: bytes) -> Compressed:
    """Compress the beginning of an answer, in slices."""
    compressor, view = zlib.compressobj(wbits=_RAW), memoryview(content)
    parts = [_GZIP_HEADER]
    for start in range(0, len(content), SLICE_BYTES):
        if start:
            await asyncio.sleep(0)
        parts.append(compressor.compress(view[start : start + SLICE_BYTES]))
    parts.append(compressor.flush(zlib.Z_FULL_FLUSH))  # ends at a byte: another block may follow
    return Compressed(b"".join(parts), zlib.crc32(content), len(content))


def end_gzip(beginning: Compressed, rest: bytes) -> bytes:
    """Return the complete gzip member of an answer whose rest, at most 64 KiB, is appended without compression."""
    # A stored block, the last (RFC 1951, 3.2.4), and the end of the member (RFC 1952, 2.3.1).
    block = struct.pack("<BHH", 1, len(rest), len(rest) ^ 0xFFFF)
    checksum, size = zlib.crc32(rest, beginning.checksum), beginning.size + len(rest)
    return b"".join((beginning.data, block, rest, struct.pack("<II", checksum, size & 0xFFFFFFFF)))


class Inflater:
    """Inflates a request body that arrives in chunks."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)

    def inflate(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the content of a chunk in slices of at most 64 KiB.

        Raises:
            InvalidEncoding: The data is not valid.
        """
        while chunk:
            try:
                yield self._stream.decompress(chunk, SLICE_BYTES)
            except zlib.error as error:
                raise InvalidEncoding(f"does not match its Content-Encoding: {error}") from None
            if self._stream.unused_data:
                raise InvalidEncoding("has data after the end of its compressed content")
            chunk = self._stream.unconsumed_tail

    def finish(self) -> bytes:
        """Return the rest of the content.

        Raises:
            InvalidEncoding: The end of the data is missing.
        """
        rest = self._stream.flush()
        if not self._stream.eof:
            raise InvalidEncoding("ends before its compressed content does")
        return rest


def inflater_of(request: web.BaseRequest) -> Inflater | None:
    """Return the inflater for the body of a request; ``None`` = it is not compressed.

    Raises:
        web.HTTPUnsupportedMediaType: Its encoding is not supported.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in _INFLATED_ENCODINGS:
        return Inflater()
    if encoding not in {"", "identity"}:
        raise web.HTTPUnsupportedMediaType(text="the body must not be compressed, or with gzip or deflate")
    return None

"""Load on REST: requests written to a number of connections, each after the answer to the one before it."""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """Return a request with a JSON body, or without one."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return (head + ("Content-Type: application/json\r\n\r\n" if body else "\r\n")).encode() + body


async def rate(address: str, requests: Iterable[bytes], connections: int) -> float:
    """Send each request once and return the requests per second. Every answer must have the status 2xx."""
    host, _, port = address.rpartition(":")
    remaining = iter(requests)
    start = time.perf_counter()
    counts = await asyncio.gather(*(_send(host, int(port), remaining) for _ in range(connections)))
    return sum(counts) / (time.perf_counter() - start)


async def _send(host: str, port: int, requests: Iterator[bytes]) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    count = 0
    for each in requests:
        writer.write(each)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        assert head.startswith(b"HTTP/1.1 2"), head + body
        count += 1
    writer.close()
    await writer.wait_closed()
    return count

"""HTTP by hand: for what no client library would send."""

import asyncio

from yarl import URL


async def exchange(base: str, request_line: bytes, *headers: bytes, body: bytes = b"") -> tuple[int, str, bytes]:
    """Sends a request on a connection of its own; gives status, headers and what follows until the server closes."""
    url = URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        lines = (request_line, b"Host: x", b"Connection: close", *headers, b"", body)
        writer.write(b"\r\n".join(lines))
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.read()
    finally:
        writer.close()
    status_line, _, fields = head.decode("latin-1").partition("\r\n")
    return int(status_line.split()[1]), fields, rest

"""Raw HTTP requests that no client library would send."""

import asyncio

from yarl import URL


async def exchange(base: str, request_line: bytes, *headers: bytes, body: bytes = b"") -> tuple[int, str, bytes]:
    """Send a request on a new connection; return status, headers and body once the server closes it."""
    url = URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        lines = (request_line, b"Host: " + (url.host or "").encode(), b"Connection: close", *headers, b"", body)
        writer.write(b"\r\n".join(lines))
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.read()
    finally:
        writer.close()
    status_line, _, fields = head.decode("latin-1").partition("\r\n")
    return int(status_line.split()[1]), fields, rest

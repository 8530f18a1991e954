"""Heads of answers."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11

from registry_server.gateway.answers import Answer


class _Transport:
    sent = b""
    drained = 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        self.drained = len(self.sent)


async def _sent(answer: Answer, **request: Any) -> tuple[list[str], bytes]:
    transport = _Transport()
    defaults = {
        "method": "GET",
        "version": HttpVersion11,
        "keep_alive": True,
        "transport": transport,
        "writer": transport,
    }
    await answer.prepare(SimpleNamespace(**{**defaults, **request}))  # type: ignore[arg-type]
    assert transport.drained == len(transport.sent), "the next request waits until the client reads"
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    return [line for line in head.decode().split("\r\n") if not line.startswith("Date: ")], body


@pytest.mark.parametrize(
    ("answer", "request_", "head", "body"),
    [
        (Answer(b"{}"), {}, ["200 OK", "Content-Type: application/json", "Content-Length: 2"], b"{}"),
        (Answer(b"{}", 201, {"ETag": '"1"'}, "a/b"), {"method": "HEAD"},
            ["201 Created", "Content-Type: a/b", 'ETag: "1"', "Content-Length: 2"], b""),
        (Answer(status=304), {"keep_alive": False}, ["304 Not Modified", "Connection: close"], b""),
        (Answer(status=204), {"version": HttpVersion10}, ["204 No Content", "Connection: keep-alive"], b""),
        (Answer(status=400), {}, ["400 Bad Request", "Content-Length: 0"], b""),
    ],
    ids=["GET", "HEAD", "not modified", "HTTP/1.0", "empty"],
)  # fmt: skip
async def test_answer_is_sent_with_its_head(
    answer: Answer, request_: dict[str, Any], head: list[str], body: bytes
) -> None:
    head[0] = f"HTTP/1.1 {head[0].removeprefix('HTTP/1.1 ')}"
    assert await _sent(answer, **request_) == (head, body)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb"])
async def test_header_with_a_line_break_is_never_sent(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        await _sent(Answer(headers={"X-Request-Id": value}))


@pytest.mark.parametrize("transport", [None, SimpleNamespace(is_closing=lambda: True)])
async def test_client_that_left_ends_the_answer(transport: Any) -> None:
    with pytest.raises(ConnectionResetError):
        await _sent(Answer(b"{}"), transport=transport)

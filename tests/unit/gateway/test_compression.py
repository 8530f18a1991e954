"""gzip of answers within a budget, and inflating of bodies in slices."""

import gzip
import tracemalloc
import zlib

import pytest

from registry_server.gateway.answers import Answer
from registry_server.gateway.compression import (
    SLICE_BYTES,
    Compression,
    Inflater,
    InvalidEncoding,
    begin_gzip,
    end_gzip,
)


def inflate(data: bytes, chunk: int = 1 << 20) -> bytes:
    inflater = Inflater()
    pieces = [piece for i in range(0, len(data), chunk) for piece in inflater.inflate(data[i : i + chunk])]
    assert all(len(piece) <= SLICE_BYTES for piece in pieces)
    return b"".join((*pieces, inflater.finish()))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, SLICE_BYTES, 3 * SLICE_BYTES + 1])
def test_body_is_inflated_in_slices(size: int, chunk: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"a" * (size % 256)
    assert inflate(gzip.compress(body), chunk) == body
    assert inflate(zlib.compress(body), chunk) == body


@pytest.mark.parametrize(
    "data",
    [b"not gzip", gzip.compress(b"a")[:-1], b"", gzip.compress(b"a") + b"b", gzip.compress(b"a") * 2],
    ids=["no gzip", "truncated", "empty", "data after the end", "two members"],
)
def test_invalid_encoding_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidEncoding):
        inflate(data)


def test_inflating_never_holds_more_than_a_slice() -> None:
    bomb = zlib.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        assert sum(map(len, Inflater().inflate(bomb))) == 64 << 20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


async def test_answers_are_sent_as_they_are_once_the_budget_is_spent() -> None:
    now = 0.0
    compression = Compression(10_000, monotonic=lambda: now)

    async def is_compressed(size: int) -> bool:
        answer = Answer(b"a" * size)
        await compression.compress(answer)
        if answer.headers.get("Content-Encoding") != "gzip":
            return False
        assert gzip.decompress(answer.body) == b"a" * size
        return True

    assert [await is_compressed(1_900) for _ in range(7)] == [True] * 5 + [False] * 2
    now = 0.2
    assert [await is_compressed(1_900) for _ in range(2)] == [True, False]
    assert not await is_compressed(20_000)
    now = 100.0
    assert [await is_compressed(1_900) for _ in range(7)] == [True] * 5 + [False] * 2
    assert not await is_compressed(1_000), "small"


@pytest.mark.parametrize("rest", [b"", b"}", bytes(65_535)])
@pytest.mark.parametrize("size", [0, 1, SLICE_BYTES, 3 * SLICE_BYTES + 1])
async def test_compressed_beginning_can_be_completed_repeatedly(size: int, rest: bytes) -> None:
    content = (b"service" * size)[:size]
    beginning = await begin_gzip(content)
    for end in (rest, b"other", rest):
        assert gzip.decompress(end_gzip(beginning, end)) == content + end
        assert inflate(end_gzip(beginning, end), 1_000) == content + end, "one member"

"""Documents that another registry, the OSSA reference implementation, left under the key prefix."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import orjson
from redis.asyncio import Redis

from registry_server.runtime.pacing import BatchTurns
from registry_server.store.connecting import Connections
from registry_server.store.failures import translate_errors

_PAGE: Final = 100
_MAX_DOCUMENT_BYTES: Final = 1 << 20
"""Longer values are not read completely: any program may have written them, and a service has at most 128 KiB."""
_GLOB_CHARACTERS: Final = frozenset("*?[]\\")


class ForeignDocument(NamedTuple):
    """A string under the key prefix."""

    key: str
    content: Any
    """Parsed JSON; ``None`` if it is not JSON, or too long."""
    permanent: bool
    """Whether the key does not expire."""

    @property
    def is_own(self) -> bool:
        """Whether this registry wrote it: its documents have a revision."""
        return isinstance(self.content, dict) and "revision" in self.content

    @property
    def is_service(self) -> bool:
        """Whether the reference implementation wrote it."""
        return isinstance(self.content, dict) and {"name", "endpoint"} <= self.content.keys() and not self.is_own


async def scan_documents(client: Redis, prefix: str) -> AsyncGenerator[list[ForeignDocument], None]:
    """Yield pages of the strings whose keys begin with a prefix.

    Raises:
        StoreUnavailable: Redis did not answer, or does not permit it.
    """
    pattern = "".join(f"\\{each}" if each in _GLOB_CHARACTERS else each for each in prefix) + "*"
    cursor, seen = 0, set[bytes]()
    while True:
        with translate_errors("SCAN"):
            answer: Any = await client.scan(cursor, match=pattern, count=_PAGE, _type="string")
        cursor, found = answer
        keys = sorted(set(found) - seen)  # a scan may return a key twice
        seen.update(keys)
        with translate_errors("GETRANGE"):
            async with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.getrange(key, 0, _MAX_DOCUMENT_BYTES)
                    pipeline.pttl(key)
                answers: Any = await pipeline.execute()
        turns = BatchTurns(_PAGE)
        page = []
        for key, raw, ttl in zip(keys, answers[::2], answers[1::2], strict=True):
            if raw:
                await turns.add(len(raw))
                page.append(ForeignDocument(key.decode(errors="backslashreplace"), _parse(raw), ttl == -1))
        yield page
        if cursor == 0:
            return


async def read_documents(url: str, key_prefix: str, timeout_seconds: float) -> list[ForeignDocument]:
    """Return the strings under a key prefix of any Redis, in order of their keys.

    Args:
        url: A URL as in the setting ``redis.url``.
        key_prefix: Prefix of the keys, without the colon that follows it.
        timeout_seconds: Seconds to wait for an answer.

    Raises:
        ConfigurationError: The URL is not valid.
        StoreUnavailable: Redis did not answer, or does not permit it.
    """
    prefix = key_prefix.removesuffix(":") + ":"
    client = Connections(url, timeout=timeout_seconds, key=prefix).client()
    try:
        documents = [each async for page in scan_documents(client, prefix) for each in page]
        return sorted(documents, key=lambda document: document.key)
    finally:
        await client.aclose()


async def holds_documents(client: Redis, prefix: str, max_pages: int) -> bool:
    """Return whether one of the first pages of the keyspace has a document of the reference implementation."""
    async with aclosing(scan_documents(client, prefix)) as pages:
        async for page in pages:
            max_pages -= 1
            if any(each.is_service for each in page):
                return True
            if not max_pages:
                return False
    return False


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw) if len(raw) <= _MAX_DOCUMENT_BYTES else None
    except orjson.JSONDecodeError:
        return None

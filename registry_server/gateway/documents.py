"""JSON of services, encoded once for each state of a service."""

from contextlib import suppress
from typing import Final

from cachetools import LRUCache

from registry_server.model.document import encode_document_prefix
from registry_server.model.record import Record

_MAX_BYTES: Final = 32 << 20
_ENTRY_OVERHEAD_BYTES: Final = 600


class Documents:
    """Caches the JSON of records, for pages, single services and event streams.

    Encoding takes about 50 µs, a hit 0.3 µs: a page of 50 services of which one has changed is assembled in 0.1 ms
    instead of 2.5 ms.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._documents: LRUCache[Record, bytes] = LRUCache(max_bytes, getsizeof=_size)

    def encoded(self, record: Record) -> bytes:
        """Return the JSON of a service."""
        document = self._documents.get(record)
        if document is None:
            document = encode_document_prefix(record.message()) + b"%d}" % record.revision
            with suppress(ValueError):  # larger than the cache
                self._documents[record] = document
        return document


def _size(document: bytes) -> int:
    """Return the memory of an entry. It keeps a record that may be outdated, and is smaller than its JSON."""
    return 2 * len(document) + _ENTRY_OVERHEAD_BYTES

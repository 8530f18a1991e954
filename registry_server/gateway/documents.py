"""JSON of services, encoded once for each state of a service."""

from typing import Final

from ossa.registry.v1.service_pb2 import Service
from registry_server.model.document import encode_document_prefix

_MAX_BYTES: Final = 32 << 20
_ENTRY_OVERHEAD_BYTES: Final = 200


class Documents:
    """Caches the JSON of services by their serialised bytes.

    The JSON depends on those bytes alone, so an entry is never out of date. Encoding takes about 50 µs, a hit 0.5 µs: a
    page of 50 services of which one has changed is assembled in 100 µs.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[bytes, bytes] = {}
        self._bytes = 0

    def encoded(self, wire: bytes) -> bytes:
        """Return the JSON of a service.

        Args:
            wire: A serialised ``Service``.
        """
        document = self._entries.get(wire)
        if document is None:
            service = Service.FromString(wire)
            document = encode_document_prefix(service) + b"%d}" % service.revision
            self._entries[wire] = document
            self._bytes += len(wire) + len(document) + _ENTRY_OVERHEAD_BYTES
            while self._bytes > self._max_bytes:
                oldest = next(iter(self._entries))
                self._bytes -= len(oldest) + len(self._entries.pop(oldest)) + _ENTRY_OVERHEAD_BYTES
        return document

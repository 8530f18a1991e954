"""The registry inside another Python program, without ports of its own."""

from registry_server.embedding.embedded_registry import EmbeddedRegistry, open_registry

__all__ = ["EmbeddedRegistry", "open_registry"]

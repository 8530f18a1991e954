"""HTTP: for people, probes and tools."""

from registry_server.gateway.server import HttpServer

__all__ = ["HttpServer"]

"""The use cases: ``ServiceRegistry``, which transports and embedding programs call."""

from registry_server.registry.service_registry import ServiceRegistry

__all__ = ["ServiceRegistry"]

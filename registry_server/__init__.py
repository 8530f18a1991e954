"""A service registry for fleets of AI agents: gRPC and REST in front, Redis behind.

Most run it as a server. A Python program may also have it in itself: ``open_registry`` gives a ``ServiceRegistry``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry_server.config import Settings
    from registry_server.embedding import open_registry
    from registry_server.registry import ServiceRegistry

__all__ = ["ServiceRegistry", "Settings", "__version__", "open_registry"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late: whoever only asks for the version, or for help, must not wait for gRPC and all the rest.
    if name == "Settings":
        from registry_server.config import Settings  # noqa: PLC0415

        return Settings
    if name == "ServiceRegistry":
        from registry_server.registry import ServiceRegistry  # noqa: PLC0415

        return ServiceRegistry
    if name == "open_registry":
        from registry_server.embedding import open_registry  # noqa: PLC0415

        return open_registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

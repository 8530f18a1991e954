"""A service registry for fleets of AI agents: gRPC and REST in front of Redis.

It usually runs as a server. A Python program can also embed it: ``open_registry`` returns an ``EmbeddedRegistry``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry_server.config import Settings
    from registry_server.embedding import EmbeddedRegistry, open_registry
    from registry_server.embedding import EmbeddedRegistry as ServiceRegistry

__all__ = ["EmbeddedRegistry", "ServiceRegistry", "Settings", "__version__", "open_registry"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on demand: a program that needs only the version, or --help, must not load gRPC and everything else.
    if name == "Settings":
        from registry_server.config import Settings  # noqa: PLC0415

        return Settings
    if name in {"EmbeddedRegistry", "ServiceRegistry", "open_registry"}:
        from registry_server import embedding  # noqa: PLC0415

        # ServiceRegistry is the name of OSSA for a registry in a program; inside the server it names the use cases.
        return embedding.open_registry if name == "open_registry" else embedding.EmbeddedRegistry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

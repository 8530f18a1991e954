"""A service registry for fleets of AI agents: gRPC and REST in front, Redis behind."""

__version__ = "0.1.0"

"""gRPC transport: decodes requests, calls ``ServiceRegistry`` and encodes responses."""

from registry_server.rpc.server import RpcServer

__all__ = ["RpcServer"]

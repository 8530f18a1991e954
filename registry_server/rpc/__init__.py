"""gRPC: decodes, calls ``ServiceRegistry``, encodes."""

from registry_server.rpc.server import RpcServer

__all__ = ["RpcServer"]

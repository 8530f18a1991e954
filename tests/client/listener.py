"""A gRPC server with one method, for tests of connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb


class Listener:
    """A server of ``GetStats`` that records the authorization of each call."""

    def __init__(self) -> None:
        self.authorizations: list[object] = []
        self.port = 0

    @asynccontextmanager
    async def listening(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> AsyncIterator[str]:
        """Serve on a port, 0 = any free one; yield the target."""
        server = grpc.aio.server()
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._answer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("ossa.registry.v1.RegistryService", {"GetStats": handler}),)
        )
        if credentials is None:
            self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        try:
            yield f"127.0.0.1:{self.port}"
        finally:
            await server.stop(0)

    async def _answer(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        self.authorizations.append(dict(context.invocation_metadata() or ()).get("authorization"))
        return pb.GetStatsResponse().SerializeToString()

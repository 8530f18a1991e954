"""Baseline: a bare grpc.aio server that returns the same bytes for every call.

``python -m benchmarks.echo FILE [PORT]``. Other processes can listen on the same port, which is gRPC's default.
"""

import sys
from pathlib import Path

import grpc
import uvloop


class _Echo(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def call(_: bytes, __: object) -> bytes:
            return answer

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(call)

    def service(self, _: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return self._handler


async def _main(answer: bytes, port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(answer),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1]).read_bytes(), int(sys.argv[2]) if len(sys.argv) > 2 else 0))

import asyncio
import socket
from typing import Any

import grpc

from registry_server.rpc.notifications import MAX_NOTIFICATIONS_PER_TURN, bulk_notifications, read_in_bulk


def test_turn_reads_a_limited_number_and_leaves_one_to_the_handler() -> None:
    reader, writer = socket.socketpair()
    unread: list[int] = []

    def handle() -> None:
        unread.append(len(reader.recv(1000, socket.MSG_PEEK)))
        reader.recv(1)

    with reader, writer:
        writer.send(bytes(MAX_NOTIFICATIONS_PER_TURN + 2))
        read_in_bulk(reader, handle)
        read_in_bulk(reader, handle)
        writer.send(b"next")
        read_in_bulk(reader, handle)
    assert unread == [3, 1, 1]


class Echo(grpc.GenericRpcHandler):
    def service(self, _: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(request: bytes, _: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_grpc_handles_many_calls_with_bulk_notifications() -> None:
    loop: Any = asyncio.get_running_loop()
    add_reader, callbacks = loop.add_reader, list[Any]()

    def record(reader: socket.socket, *args: Any) -> None:
        callbacks.append(args[0])
        add_reader(reader, *args)

    loop.add_reader = record
    with bulk_notifications():
        server = grpc.aio.server(handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a/B")
        assert await asyncio.gather(*(call(b"x") for _ in range(500))) == [b"x"] * 500
    await server.stop(None)
    assert callbacks == [read_in_bulk]

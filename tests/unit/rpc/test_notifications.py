import asyncio
import select
import socket
from typing import Any

import grpc

from registry_server.rpc.notifications import MAX_NOTIFICATIONS_PER_TURN, BulkReader, bulk_notifications


def test_turn_reads_a_limited_number_and_leaves_one_to_the_handler() -> None:
    reader, writer = socket.socketpair()
    unread: list[int] = []

    def handle() -> None:
        unread.append(len(reader.recv(1000, socket.MSG_PEEK)))
        reader.recv(1)

    with reader, writer:
        bulk = BulkReader(reader, handle)
        writer.send(bytes(MAX_NOTIFICATIONS_PER_TURN + 2))
        bulk.handle()
        bulk.handle()
        writer.send(b"next")
        bulk.handle()
    assert unread == [3, 1, 1]


def test_backlog_is_noticed_within_some_turns_after_a_quiet_one() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        bulk = BulkReader(reader, lambda: reader.recv(1))
        writer.send(b"1")
        bulk.handle()
        writer.send(bytes(100))
        turns = 0
        while _unread(reader):
            bulk.handle()
            turns += 1
    assert turns < 30


def _unread(reader: socket.socket) -> bool:
    return bool(select.select([reader], [], [], 0)[0])


class Echo(grpc.GenericRpcHandler):
    def service(self, _: object) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(request: bytes, _: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


async def test_grpc_handles_many_calls_with_bulk_notifications() -> None:
    loop: Any = asyncio.get_running_loop()
    add_reader, callbacks = loop.add_reader, list[str]()

    def record(reader: socket.socket, *args: Any) -> None:
        callbacks.append(args[0].__qualname__)
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
    assert callbacks == [BulkReader.handle.__qualname__]

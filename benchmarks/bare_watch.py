"""Baseline of the fan-out: a bare grpc.aio server that writes the same bytes to every stream.

``python -m benchmarks.bare_watch FILE EVENTS``: each call of ``/bare/Trigger`` writes the content of FILE to every
stream of ``/bare/Watch``, EVENTS times. Each call of ``/bare/Publish`` numbers EVENTS copies of FILE and writes them to
every stream of ``/bare/Subscribe``, as many per second as the request states, joined with what the stream has not
written yet: a repeated field of joined messages contains the elements of all of them.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop


class _Bare(grpc.GenericRpcHandler):
    def __init__(self, message: bytes, events: int) -> None:
        self._message = message
        self._events = events
        self._watchers: list[Any] = []
        self._queues: dict[asyncio.Event, list[bytes]] = {}

    def service(self, details: Any) -> Any:
        match details.method:
            case "/bare/Watch":
                return grpc.unary_stream_rpc_method_handler(self._watch)
            case "/bare/Subscribe":
                return grpc.unary_stream_rpc_method_handler(self._subscribe)
            case "/bare/Publish":
                return grpc.unary_unary_rpc_method_handler(self._publish)
        return grpc.unary_unary_rpc_method_handler(self._trigger)

    async def _watch(self, _: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b""  # confirms that the watch is established
        self._watchers.append(context)
        try:
            await asyncio.Event().wait()
        finally:
            self._watchers.remove(context)  # a write to a disconnected watcher would never return

    async def _trigger(self, _: bytes, __: Any) -> bytes:
        for _event in range(self._events):
            await asyncio.gather(*(watcher.write(self._message) for watcher in self._watchers))
        return b""

    async def _subscribe(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        yield b""
        news, queue = asyncio.Event(), list[bytes]()
        self._queues[news] = queue
        try:
            while True:
                await news.wait()
                news.clear()
                message = b"".join(queue)
                queue.clear()
                yield message
        finally:
            del self._queues[news]

    async def _publish(self, rate: bytes, _: Any) -> bytes:
        # One call for all events: grpc.aio accepts one call per turn of the loop, too few while it writes constantly.
        start = time.monotonic()
        for number in range(self._events):
            await asyncio.sleep(start + number / int(rate) - time.monotonic())
            message = self._message.replace(b"000000", b"%06d" % number)
            for news, queue in self._queues.items():
                queue.append(message)
                news.set()
        return b""


async def _main(message: bytes, events: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Bare(message, events),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1]).read_bytes(), int(sys.argv[2])))

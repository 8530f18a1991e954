"""Baseline of the fan-out: a bare grpc.aio server that writes the same bytes to every stream.

``python -m benchmarks.bare_watch FILE EVENTS``: each call of ``/bare/Trigger`` writes the content of FILE to every
stream of ``/bare/Watch``, EVENTS times.
"""

import asyncio
import sys
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

    def service(self, details: Any) -> Any:
        if details.method == "/bare/Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
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


async def _main(message: bytes, events: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Bare(message, events),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1]).read_bytes(), int(sys.argv[2])))

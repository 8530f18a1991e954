"""``Listener``: restarts grpc.aio after a non-UTF-8 path ended its accept loop.

grpc.aio (1.85) decodes the path of each call as UTF-8 in its accept loop without handling errors. A single request with
an invalid byte, from anyone who reaches the port, ends the loop: calls in flight finish, but the server no longer
accepts any. The listener detects this and starts another server on the same address.

Do not register methods (``add_registered_method_handlers``): the end of the loop would cancel the tasks that wait for
their calls and free the memory that gRPC's core writes the next call to, which ends the process with SIGSEGV.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import grpc
import structlog

from registry_server.runtime.tasks import cancel

CHECK_INTERVAL_SECONDS: Final = 0.1
"""How often the accept loop is checked: the longest time without a listener."""
_MAX_CALL_SECONDS: Final = 30 * 24 * 60 * 60.0
"""How long a call may continue on a server whose accept loop has ended."""
_GRPC_LOG: Final = "grpc._cython.cygrpc"
_CLIENT_LEFT: Final = "ExecuteBatchError raised in core"

log = structlog.get_logger(__name__)


class Listener:
    """Keeps a gRPC server listening on one address."""

    def __init__(self, make_server: Callable[[], grpc.aio.Server], bind: Callable[[grpc.aio.Server, str], int]) -> None:
        """Create the listener; nothing listens yet.

        Args:
            make_server: Creates a server with all its handlers.
            bind: Binds a server to an address and returns the port; raises ``RuntimeError`` on failure.
        """
        self._make_server, self._bind = make_server, bind
        self._server: grpc.aio.Server | None = None
        self._ended: dict[asyncio.Task[None], grpc.aio.Server] = {}
        """Servers whose accept loop has ended and whose calls, such as watches, may continue for days."""
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            RuntimeError: Listening on the address failed.
        """
        for name in (_GRPC_LOG, "asyncio"):
            logging.getLogger(name).addFilter(_is_relevant)
        server = self._make_server()
        port = self._bind(server, address)
        bound = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server
        self._task = asyncio.create_task(self._restart_when_ended(server, bound), name="gRPC listener")
        return bound

    async def stop(self, grace: float | None) -> None:
        """Reject new calls, let those in flight finish, and cancel the remaining ones after ``grace`` seconds."""
        if self._task is not None:
            await cancel([self._task])
        ended = dict(self._ended)
        await cancel(list(ended))
        servers = [*ended.values(), *([self._server] if self._server is not None else [])]
        # In parallel: one after the other, each would take the whole grace period.
        await asyncio.gather(*(_stop(server, grace) for server in servers))

    async def _restart_when_ended(self, server: grpc.aio.Server, address: str) -> None:
        while True:
            try:
                if not await server.wait_for_termination(timeout=CHECK_INTERVAL_SECONDS):
                    return
            except UnicodeDecodeError:
                log.warning("gRPC accept loop restarted", address=address)
                finishing = asyncio.create_task(_finish_calls(server), name="ended gRPC server")
                self._ended[finishing] = server
                finishing.add_done_callback(self._ended.pop)
                self._server = server = await self._start_another(address)

    async def _start_another(self, address: str) -> grpc.aio.Server:
        while True:
            server = self._make_server()
            try:
                self._bind(server, address)
            except RuntimeError:  # the old server has not released the port yet
                await server.stop(None)
                await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            else:
                await server.start()
                return server


async def _finish_calls(server: grpc.aio.Server) -> None:
    """Wait for the calls of an ended server, then release its resources."""
    # Not wait_for_termination: its cancellation would also cancel the future that stop() waits for.
    await server.stop(_MAX_CALL_SECONDS)


async def _stop(server: grpc.aio.Server, grace: float | None) -> None:
    try:
        await server.stop(grace)
    except UnicodeDecodeError:  # the accept loop ended just now, which began the stop; wait for it
        await server.stop(grace)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Return False for errors that gRPC logs when clients send invalid text or disconnect during a call.

    Unauthenticated clients decide how often that happens, and the invalid bytes may contain a secret.
    """
    if record.name == _GRPC_LOG and record.getMessage().startswith(_CLIENT_LEFT):
        return False
    for error in (record.msg, record.exc_info[1] if record.exc_info else None):
        if isinstance(error, UnicodeDecodeError) and _raised_by_grpc(error):
            return False
    return True


def _raised_by_grpc(error: UnicodeDecodeError) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "_cygrpc" in trace.tb_frame.f_code.co_filename

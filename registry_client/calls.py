"""Unary calls: deadline, retries, the next target, errors of our own, and the revision of the session."""

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

import grpc

from registry_client.channel import Channels
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, ShuttingDown, error_of_call
from registry_client.retry import Backoff, may_repeat

if TYPE_CHECKING:
    from collections.abc import Callable

    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def being_cancelled() -> bool:
    """Whether the current task is being cancelled: gRPC raises ``CancelledError`` also where a channel was closed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Session:
    """The highest revision that a client has seen, so that it never reads what is older.

    Revisions count anew when the registry's store was replaced by an older or empty one.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.revision = 0

    def saw(self, revision: int) -> None:
        """Remembers a revision."""
        if self._enabled and revision > self.revision:
            self.revision = revision

    def restart(self, revision: int) -> None:
        """Begins again at a revision: what was counted before means nothing any more."""
        self.revision = min(self.revision, revision)


class Caller:
    """Makes unary calls over ``Channels``."""

    def __init__(self, channels: Channels, backoff: Backoff, timeout: float) -> None:
        self._channels = channels
        self._backoff = backoff
        self._timeout = timeout

    async def call(
        self,
        method: "Callable[[RegistryServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        *,
        timeout: float | None = None,
        repeatable: bool = True,
    ) -> _Response:
        """Makes a call, again if that is safe, until the deadline.

        Args:
            method: Takes the method from the stub.
            request: What to send.
            timeout: Seconds for all tries together; the client's by default.
            repeatable: Whether making the call twice is the same as making it once.

        Raises:
            RegistryError: What the last try met.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        failures = 0
        while True:
            target = self._channels.target
            try:
                left = deadline - time.monotonic()
                return await self._attempt(method, request, self._share(left, repeatable=repeatable))
            except RegistryError as error:
                if not may_repeat(error, repeatable=repeatable):
                    raise
                failures += 1
                another = self._channels.give_up(target)
                # Who drains asks to wait, or to go to another: there is no reason to wait for that one.
                at_least = 0.0 if another and isinstance(error, ShuttingDown) else error.retry_after
                delay = self._backoff.delay(failures, at_least)
                if another and failures < len(self._channels):
                    delay = 0.0
                if time.monotonic() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    async def _attempt(
        self,
        method: "Callable[[RegistryServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        timeout: float,
    ) -> _Response:
        if timeout <= 0:
            raise DeadlineExceeded("no time is left for this call")
        try:
            return await method(self._channels.stub)(request, timeout=timeout, metadata=self._channels.metadata())
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error) from error
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise RegistryUnavailable("this client was closed") from None

    def _share(self, left: float, *, repeatable: bool) -> float:
        """Seconds for one try: where another target could answer, one that hangs must not use up all of the time."""
        return left / 2 if repeatable and len(self._channels) > 1 else left

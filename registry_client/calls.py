"""Unary calls: deadlines, retries, failover to the next target, translation of errors, and session consistency."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc

from registry_client.channel import Channels
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, ShuttingDown, error_from_rpc
from registry_client.retry import Backoff, is_retryable

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def is_being_cancelled() -> bool:
    """Return whether the current task is being cancelled.

    gRPC also raises ``CancelledError`` when its channel is closed; this distinguishes the two.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Session:
    """The highest revision that a client has seen, which is the minimum revision of its next reads.

    The revision is lowered when the registry's store was replaced by an older or an empty one.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self.revision = 0

    def observe_revision(self, revision: int) -> None:
        """Record a revision that the client has seen."""
        if self._enabled and revision > self.revision:
            self.revision = revision

    def reset_revision(self, revision: int) -> None:
        """Lower the revision after the store was replaced: earlier revisions belong to the old store."""
        self.revision = min(self.revision, revision)


class Caller:
    """Makes unary calls over ``Channels``, with retries until a deadline.

    Args:
        channels: The connections.
        backoff: How long to wait between attempts.
        timeout: Default seconds for a call with all its attempts.
        clock: Monotonic time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        channels: Channels,
        backoff: Backoff,
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._channels = channels
        self._backoff = backoff
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep

    async def call(
        self,
        method: "Callable[[RegistryServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        *,
        timeout: float | None = None,
        repeatable: bool = True,
    ) -> _Response:
        """Make a call, and retry it until the deadline if that is safe.

        Args:
            method: Selects the method of the stub.
            request: The request message.
            timeout: Seconds for all attempts together; by default the timeout of the client.
            repeatable: Whether making the call twice has the same effect as making it once.

        Raises:
            RegistryError: The error of the last attempt.
        """
        deadline = self._clock() + (self._timeout if timeout is None else timeout)
        failures = 0
        while True:
            target = self._channels.target
            try:
                remaining = deadline - self._clock()
                return await self._attempt(method, request, self._attempt_timeout(remaining, repeatable=repeatable))
            except RegistryError as error:
                if not is_retryable(error, repeatable=repeatable):
                    raise
                failures += 1
                has_other_target = self._channels.fail_over(target)
                # A draining process requests a delay before a retry on itself; it does not apply to another target.
                at_least = 0.0 if has_other_target and isinstance(error, ShuttingDown) else error.retry_after
                delay = self._backoff.delay(failures, at_least)
                if has_other_target and failures < len(self._channels):
                    delay = 0.0
                if self._clock() + delay >= deadline:
                    raise
            await self._sleep(delay)

    async def _attempt(
        self,
        method: "Callable[[RegistryServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]]",
        request: _Request,
        timeout: float,
    ) -> _Response:
        if timeout <= 0:
            raise DeadlineExceeded("the deadline of the call has passed")
        try:
            rpc = method(self._channels.stub)
            return await rpc(request, timeout=timeout, metadata=self._channels.call_metadata())
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            raise RegistryUnavailable("the client was closed during the call") from None

    def _attempt_timeout(self, remaining: float, *, repeatable: bool) -> float:
        """Return the seconds for one attempt: half of the remaining time if a retry on another target is possible."""
        return remaining / 2 if repeatable and len(self._channels) > 1 else remaining

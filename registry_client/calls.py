"""Unary calls with deadlines, retries and failover; messages of streams; the session's revision."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from ossa.registry.v1.registry_service_pb2 import DESCRIPTOR
from registry_client.channel import Channels
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, ShuttingDown, error_from_rpc
from registry_client.retry import is_retryable

_PRECONDITIONS: Final = ("create_only", "expected_revision")
"""Fields of a request with which a second attempt would conflict with the client's own first one."""

_Response = TypeVar("_Response", bound=Message)
_Rpc: TypeAlias = Callable[..., Awaitable[_Response]]


class _Method(NamedTuple):
    name: str
    idempotent: bool
    preconditions: tuple[str, ...]

    def is_repeatable(self, request: Message) -> bool:
        """Return whether making the call twice has the same effect as making it once."""
        return self.idempotent and not any(getattr(request, field) for field in self.preconditions)


_METHODS: Final = {
    (GetMessageClass(method.input_type), GetMessageClass(method.output_type)): _Method(
        method.name,
        method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN,
        tuple(field for field in _PRECONDITIONS if field in method.input_type.fields_by_name),
    )
    for method in DESCRIPTOR.services_by_name["RegistryService"].methods
}
"""RPCs by the types of their requests and responses."""


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
        timeout: Default seconds for a call with all its attempts.
    """

    def __init__(self, channels: Channels, timeout: float) -> None:
        self._channels = channels
        self.timeout = timeout

    async def call(self, request: Message, response: type[_Response], timeout: float | None = None) -> _Response:
        """Call the RPC of a request, and retry it until the deadline if that is safe.

        Args:
            request: The request message.
            response: The response type of the same RPC.
            timeout: Seconds for all attempts together; by default the timeout of the client.

        Raises:
            RegistryError: The error of the last attempt.
        """
        method = _METHODS[type(request), response]
        repeatable = method.is_repeatable(request)
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        failures = 0
        while True:
            target = self._channels.target
            remaining = deadline - time.monotonic()
            if repeatable and len(self._channels) > 1:
                remaining /= 2  # leaves time for another target
            rpc: _Rpc[_Response] = getattr(self._channels.stub, method.name)
            try:
                return await self._attempt(rpc, request, remaining)
            except RegistryError as error:
                self._channels.name_proxy(error, target)
                if not is_retryable(error, repeatable=repeatable):
                    raise
                failures += 1
                # A draining process requests a delay before a retry on itself; it does not apply to another target.
                other_target = len(self._channels) > 1 and isinstance(error, ShuttingDown)
                delay = self._channels.fail_over(target, failures, 0.0 if other_target else error.retry_after)
                if time.monotonic() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    async def _attempt(self, rpc: _Rpc[_Response], request: Message, timeout: float) -> _Response:
        if timeout <= 0:
            raise DeadlineExceeded("the deadline of the call has passed")
        with sdk_errors():
            return await rpc(request, timeout=timeout, metadata=self._channels.call_metadata())


async def next_message(
    stream: Any, response: type[_Response], timeout: float, request: Message | None = None
) -> _Response:
    """Return the next message of a stream, after sending a request if there is one.

    Args:
        stream: The call.
        response: Type of the messages that the stream returns.
        timeout: Seconds for both.
        request: The message to send first.

    Raises:
        DeadlineExceeded: No message arrived in time.
        RegistryError: The stream has ended.
    """
    with sdk_errors():
        try:
            async with asyncio.timeout(timeout):
                if request is not None:
                    await stream.write(request)
                message = await stream.read()
        except TimeoutError:
            raise DeadlineExceeded(f"no message from the registry for {timeout:g} s") from None
    if isinstance(message, response):
        return message
    raise RegistryUnavailable("the registry ended the stream")


@contextmanager
def sdk_errors() -> Iterator[None]:
    """Convert the exceptions that gRPC raises in a call into errors of the SDK."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    except asyncio.InvalidStateError as error:  # writing to a stream that has ended
        raise RegistryUnavailable("the stream has ended") from error
    except asyncio.CancelledError:
        # gRPC also raises it when the channel is closed.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RegistryUnavailable("the client was closed during the call") from None

"""``CallScope``: what surrounds the handling of a call, the same for every unary RPC, stream and HTTP request."""

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from registry_server.config import LogSettings
from registry_server.errors import RegistryError
from registry_server.instrumentation.counters import CallCounters, TransportCounters
from registry_server.instrumentation.log_budget import LogBudget
from registry_server.instrumentation.request_context import RequestContext
from registry_server.instrumentation.tracing import Attributes, Tracer
from registry_server.security.guard import Guard
from registry_server.security.identity import CALLER_KEY, NO_KEY, UNCHECKED, Identity, caller_fields, current_identity
from registry_server.security.limits import CallSlot, Streams
from registry_server.security.permissions import Permission
from registry_server.security.sessions import Caller, Session


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An RPC, or a method of an HTTP path."""

    permission: Permission | None
    """Required of callers; ``None`` = the handler only rejects calls, which needs no credential."""
    counters: CallCounters | None = None
    """``None`` = its calls are neither counted, logged nor traced, and no shutdown waits for them."""
    limited: bool = True
    """Whether its calls count towards the limit on calls in flight."""
    streams: Streams | None = None
    """The kind of stream, whose number is limited for each caller."""


class Admission:
    """What all calls of one transport share."""

    def __init__(self, guard: Guard, logs: LogSettings | None = None, tracer: Tracer | None = None) -> None:
        """Create the admission; the transport adds its endpoints.

        Args:
            guard: Admits callers.
            logs: Which calls to log; by default those that end with an error.
            tracer: Records a span for each call; ``None`` = no tracing.
        """
        self.guard = guard
        self.tracer = tracer
        self.counters = TransportCounters()
        logs = logs or LogSettings()
        self.logs_all = logs.requests == "all"
        self.logs_errors = logs.requests != "off"
        self.log_budget = LogBudget()
        self.call_ended: asyncio.Event | None = None
        """Set at the end of each call while ``wait_idle`` waits."""

    def counters_of(self, name: str) -> CallCounters:
        """Return the counters of an RPC or path; several endpoints may share them."""
        return self.counters.calls.setdefault(name, CallCounters())

    async def wait_idle(self, max_seconds: float) -> bool:
        """Wait until no call is in flight; return False if that takes longer than ``max_seconds``."""
        ended = self.call_ended = asyncio.Event()
        try:
            async with asyncio.timeout(max_seconds):
                while any(counters.in_flight for counters in self.counters.calls.values()):
                    ended.clear()
                    await ended.wait()
        except TimeoutError:
            return False
        return True


class CallScope(RequestContext, Caller):
    """One call: admits it, handles it, and then counts and logs it.

    A transport's subclass reads the call (``header``, ``peer``, ``address``, ``credentials``) and implements the steps.
    """

    log: ClassVar[Any]
    """Logger of the request log."""
    cancelled_result: ClassVar[str] = ""
    """Result of a call that was cancelled; empty = it is neither counted nor logged."""

    # Defaults of attributes that few calls set.
    session: Session | None = None
    """Session of a stream whose number is limited."""
    caller_key: tuple[str, str] = NO_KEY
    """Key for the limits of its caller, set by the guard."""
    result: str = ""
    """How the call ended, as counted in the metrics."""
    timed: bool = True
    """Whether its duration is counted; that of a stream is decided by the client."""
    waiting: "asyncio.Task[Any] | None" = None
    """Its task, while the call waits for its client and may be refused; otherwise they would refer to each other."""
    _refused: RegistryError | None = None
    slot: CallSlot | None = None
    """Its place among the calls in flight; released at the end of the call unless it was set to ``None``."""

    def __init__(self, admission: Admission, endpoint: Endpoint) -> None:
        self.admission, self.endpoint = admission, endpoint

    @abstractmethod
    def _request_bytes(self) -> int:
        """Return the size of the request, or an upper bound if it has not arrived yet."""

    @abstractmethod
    def _begin(self) -> None:
        """Prepare the call before it is admitted; an error rejects it."""

    @abstractmethod
    async def _handle(self) -> Any:
        """Do what the admitted call asks for, and return the answer."""

    @abstractmethod
    async def _fail(self, error: Exception) -> Any:
        """Answer the call with an error."""

    @abstractmethod
    def _failure_level(self) -> int:
        """Return the log level of ``result``; 0 for a success."""

    @abstractmethod
    def _result_fields(self) -> dict[str, Any]:
        """Return the log fields for what was called and how it ended."""

    @abstractmethod
    def _span_start(self) -> tuple[str, Attributes]:
        """Return the name and first attributes of the call's span."""

    @abstractmethod
    def _span_end(self) -> tuple[Attributes, bool]:
        """Return the attributes of the call's result, and whether it is an error of the server."""

    def run(self) -> Coroutine[Any, Any, Any]:
        """Admit and handle the call, and return its answer."""
        tracer = self.admission.tracer
        return self._run() if tracer is None or self.endpoint.counters is None else self._run_in_span(tracer)

    async def _run_in_span(self, tracer: Tracer) -> Any:
        name, attributes = self._span_start()
        with tracer.trace_call(name, attributes, self.header) as span:
            try:
                return await self._run()
            finally:
                if self.result:
                    attributes, failed = self._span_end()
                    span.set_result(attributes, failed=failed)

    async def _run(self) -> Any:
        started = time.perf_counter()
        counters = self.endpoint.counters
        if counters is not None:
            counters.in_flight += 1
        try:
            self._begin()
            guard, permission = self.admission.guard, self.endpoint.permission
            if permission is None:
                guard.charge_guest(self)
                return await self._handle()
            # Almost every caller is known and needs no coroutine: less code to run with cold processor caches.
            identity = guard.admit_known(self, permission) or await guard.admit(self, permission)
            if identity is not UNCHECKED:
                current_identity.set(identity)
            CALLER_KEY.set(self.caller_key)
            if self.endpoint.streams is not None:
                return await self._handle_stream(identity, permission, self.endpoint.streams)
            if self.endpoint.limited:
                in_flight = guard.places(self.caller_key).in_flight
                self.slot = CallSlot(in_flight, self.caller_key, self._request_bytes())
            return await self._handle()
        except Exception as error:  # noqa: BLE001 - the one place that maps errors to answers
            return await self._fail(error)
        except asyncio.CancelledError:
            return await self._fail(self._take_refusal())
        finally:
            if self.slot is not None:
                self.slot.release()
            if counters is not None:
                self._count(counters, time.perf_counter() - started)

    async def _handle_stream(self, identity: Identity, permission: Permission, streams: Streams) -> Any:
        try:
            with self.admission.guard.session(self, identity, permission, streams) as self.session:
                return await self._handle()
        finally:
            # It refers to this call, and the garbage collector rarely frees cycles of old objects.
            self.session = None

    def on_revoked(self, end: Callable[[RegistryError], object]) -> None:
        """Call a function that ends the stream when its caller is no longer authorised."""
        if self.session is not None:
            self.session.on_end(end)

    def refuse(self, reason: RegistryError) -> None:
        """Stop what the call waits for, and answer it with an error."""
        if self.waiting is not None and self._refused is None:
            self._refused = reason
            self.waiting.cancel()

    def _take_refusal(self) -> RegistryError:
        """Return why the cancelled call was refused.

        Raises:
            CancelledError: It was not refused: the client left, or the server stops.
        """
        if self._refused is None:
            self.result = self.cancelled_result
            raise  # noqa: PLE0704 - called while the cancellation is handled
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        return self._refused

    def _count(self, counters: CallCounters, seconds: float) -> None:
        """Count the end of the call, and log it if configured."""
        admission = self.admission
        counters.in_flight -= 1
        if admission.call_ended is not None:
            admission.call_ended.set()
        if not self.result:
            return
        counters.count(self.result, seconds if self.timed else None)
        level = self._failure_level()
        if admission.logs_all or (admission.logs_errors and level):
            self._log(level, seconds)

    def _log(self, level: int, seconds: float) -> None:
        """Write the line about the call, unless its caller has caused too many lines."""
        admission = self.admission
        guest = admission.guard.is_guest(self.caller_key)
        suppressed: int | None = 0
        if guest or not admission.logs_all:
            # Callers without a credential share one budget: they could change their address.
            suppressed = admission.log_budget.take_line((level, "" if guest else self.caller_key))
            if suppressed is None:
                return
        self.log.log(
            level or logging.INFO,
            "request",
            **self._result_fields(),
            milliseconds=round(seconds * 1000, 3),
            **self.log_fields(),
            **caller_fields(),
            **({"suppressed": suppressed} if suppressed else {}),
        )

"""``CallScope``: the order of admission, and what is counted and logged, without a transport."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from registry_server.admission import Admission, CallScope, Endpoint, disclosed
from registry_server.config import LimitSettings, LogSettings, SecuritySettings
from registry_server.errors import LimitExceeded, Overloaded, RateLimited, RegistryError, ServiceNotFound
from registry_server.instrumentation.log_budget import BURST_LINES, LINES_PER_SECOND
from registry_server.instrumentation.request_context import REQUEST_CONTEXT
from registry_server.instrumentation.tracing import Attributes
from registry_server.security.authenticator import Credentials
from registry_server.security.guard import Guard
from registry_server.security.permissions import READ
from tests.support.security import Policy


class Call(CallScope):
    """A call whose answer is ``work()``, or the reason of its error."""

    transport = "grpc"
    peer = "peer"
    log = structlog.get_logger("test")
    cancelled_result = "CANCELLED"

    def __init__(self, admission: Admission, endpoint: Endpoint, work: Callable[["Call"], Awaitable[Any]]) -> None:
        super().__init__(admission, endpoint)
        self._work = work

    def header(self, name: str) -> str | None:  # noqa: ARG002 - no headers
        return None

    def address(self) -> str:
        return "192.0.2.1"

    def credentials(self) -> Credentials:
        return Credentials()

    def _request_bytes(self) -> int:
        return 1

    def _begin(self) -> None:
        pass

    async def _handle(self) -> Any:
        answer = await self._work(self)
        self.result = "OK"
        return answer

    async def _fail(self, error: Exception) -> Any:
        self.result = disclosed(error).reason
        return self.result

    def _failure_level(self) -> int:
        return 0 if self.result in {"OK", "CANCELLED"} else logging.INFO

    def _result_fields(self) -> dict[str, Any]:
        return {"method": "Test", "code": self.result}

    def _span_start(self) -> tuple[str, Attributes]:
        return "test", {}

    def _span_end(self) -> tuple[Attributes, bool]:
        return {}, False


async def succeed(_: Call) -> str:
    return "answer"


async def not_found(_: Call) -> None:
    raise ServiceNotFound("a")


def admission_with(requests: str = "errors", **limits: Any) -> Admission:
    guard = Guard(SecuritySettings(), LimitSettings(**limits))
    return Admission(guard, LogSettings(requests=requests))  # type: ignore[arg-type]


def endpoint_of(admission: Admission, **fields: Any) -> Endpoint:
    return Endpoint(READ, admission.counters_of("Test"), **fields)


async def run(admission: Admission, work: Callable[[Call], Awaitable[Any]], **fields: Any) -> Any:
    return await Call(admission, endpoint_of(admission, **fields), work).run()


async def test_call_is_in_flight_until_it_has_ended() -> None:
    admission = admission_with()
    counters, in_flight = admission.counters_of("Test"), admission.guard.in_flight

    async def observe(_: Call) -> tuple[int, int]:
        return counters.in_flight, in_flight.calls.held

    assert await run(admission, observe) == (1, 1)
    assert await run(admission, observe, limited=False) == (1, 0)
    assert (counters.in_flight, in_flight.calls.held) == (0, 0)
    assert counters.ended == {"OK": 2}


async def test_error_becomes_the_answer_and_is_counted_and_logged() -> None:
    admission = admission_with()
    with capture_logs() as logs:
        assert await run(admission, succeed) == "answer"
        assert await run(admission, not_found) == "SERVICE_NOT_FOUND"
    (line,) = logs
    assert line.pop("milliseconds") >= 0
    assert line.pop("request_id")
    assert line == {
        "event": "request",
        "log_level": "info",
        "transport": "grpc",
        "peer": "peer",
        "method": "Test",
        "code": "SERVICE_NOT_FOUND",
    }
    assert admission.counters_of("Test").ended == {"OK": 1, "SERVICE_NOT_FOUND": 1}


@pytest.mark.parametrize(("requests", "lines"), [("off", 0), ("errors", 1), ("all", 2)])
async def test_setting_decides_which_calls_are_logged(requests: str, lines: int) -> None:
    admission = admission_with(requests)
    with capture_logs() as logs:
        await run(admission, succeed)
        await run(admission, not_found)
    assert len(logs) == lines


async def test_failures_of_a_caller_are_logged_at_a_limited_rate() -> None:
    admission = admission_with()
    with capture_logs() as logs:
        for _ in range(3 * BURST_LINES):
            await run(admission, not_found)
        await asyncio.sleep(2 / LINES_PER_SECOND)
        await run(admission, not_found)
    assert BURST_LINES < len(logs) < 2 * BURST_LINES
    suppressed = sum(line.get("suppressed", 0) for line in logs)
    assert len(logs) + suppressed == 3 * BURST_LINES + 1
    assert admission.counters_of("Test").ended == {"SERVICE_NOT_FOUND": 3 * BURST_LINES + 1}


async def test_all_calls_are_logged_if_configured_except_of_callers_without_a_credential(tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings())
    guarded, unguarded = Admission(guard, LogSettings(requests="all")), admission_with("all")
    for admission, expected in ((guarded, range(BURST_LINES, 2 * BURST_LINES)), (unguarded, [3 * BURST_LINES])):
        with capture_logs() as logs:
            for _ in range(3 * BURST_LINES):
                await run(admission, not_found)
        assert len(logs) in expected


async def test_refused_call_stops_waiting_and_is_answered_with_the_error() -> None:
    admission = admission_with()

    async def wait(call: Call) -> None:
        call.waiting = asyncio.current_task()
        asyncio.get_running_loop().call_soon(call.refuse, ServiceNotFound("a"))
        await asyncio.Event().wait()

    assert await run(admission, wait) == "SERVICE_NOT_FOUND"
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    assert admission.guard.in_flight.calls.held == 0


async def test_unexpected_error_is_logged_with_the_request_id_and_hidden() -> None:
    async def fail(call: Call) -> None:
        REQUEST_CONTEXT.set(call)
        raise KeyError("secret")

    with capture_logs() as logs:
        assert await run(admission_with("off"), fail) == RegistryError.reason
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("unexpected error", "error")
    assert line["request_id"]


async def test_rejected_call_is_counted_but_not_handled() -> None:
    admission = admission_with(calls=1, requests_per_second=1, request_burst=2)

    async def nested(_: Call) -> Any:
        return await run(admission, succeed)

    assert await run(admission, nested) == Overloaded.reason
    assert await run(admission, succeed, limited=False) == RateLimited.reason
    assert admission.counters_of("Test").ended == {Overloaded.reason: 1, "OK": 1, RateLimited.reason: 1}
    assert admission.guard.in_flight.calls.held == 0


async def test_uncounted_endpoint_is_admitted_but_neither_counted_nor_logged() -> None:
    admission = admission_with("all")
    with capture_logs() as logs:
        assert await Call(admission, Endpoint(READ), not_found).run() == "SERVICE_NOT_FOUND"
    assert logs == []
    assert admission.counters.calls == {}


async def test_cancelled_call_is_counted_and_released() -> None:
    admission = admission_with()
    waiting = asyncio.Event()

    async def wait(_: Call) -> None:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run(admission, wait))
    await waiting.wait()
    assert not await admission.wait_idle(0)
    idle = asyncio.create_task(admission.wait_idle(60))
    await asyncio.sleep(0)
    task.cancel()
    assert await idle
    assert admission.counters_of("Test").ended == {"CANCELLED": 1}
    assert admission.guard.in_flight.calls.held == 0


async def test_streams_are_limited_for_each_kind() -> None:
    admission = admission_with(watches_per_caller=1)

    async def open_another(_: Call) -> Any:
        return [await run(admission, succeed, streams=kind) for kind in ("watches", "keep-alive-streams")]

    assert await run(admission, open_another, streams="watches") == [LimitExceeded.reason, "answer"]
    assert await run(admission, succeed, streams="watches") == "answer"


async def test_ended_stream_is_freed_without_the_garbage_collector() -> None:
    admission = admission_with()

    async def watch(call: Call) -> None:
        call.on_revoked(lambda _: None)

    call = Call(admission, endpoint_of(admission, streams="watches"), watch)
    alive = weakref.ref(call)
    gc.disable()
    try:
        await call.run()
        del call
        assert alive() is None
    finally:
        gc.enable()

"""Keeps services registered until somebody ends the program."""

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from registry_cli.calls import Call
from registry_cli.exits import Exit
from registry_cli.files import Given
from registry_cli.output import Output
from registry_client import RegistrationState, RegistryError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


async def keep(call: Call, given: Sequence[Given], *, replicas: bool, drain: float) -> Exit:
    """Registers services and renews their leases until Ctrl-C or SIGTERM; then they drain and are unregistered.

    A registry that goes away is waited for, and told again what it has forgotten. A second signal ends the process at
    once; the leases then end by themselves.

    Returns:
        Exit code: whether the registry could be told that all of them are gone.

    Raises:
        RegistryError: One could not be registered in the first place; the others are unregistered.
    """
    code = Exit.OK
    with _ended_by_signal() as ended, _told(call.out):
        # Retrying is what this is for, once it has begun: a client of its own, whose first calls may not.
        async with call.connection.client(retry=True) as client:

            async def one(each: Given) -> None:
                nonlocal code
                kept = client.registration(each.service, replicas=replicas, drain=drain, sigterm=False)
                async with kept as registration:
                    call.out.line(f"{registration.name} registered, revision {registration.service.revision}")
                    registration.on_change(lambda state: _tell(call.out, registration.name, state, registration.error))
                    await ended.wait()
                if registration.removed:
                    call.out.line(f"{registration.name} unregistered")
                else:
                    code = Exit.UNAVAILABLE

            await call.client.get_registry_health()  # who is not there is told at once, unless --retry
            try:
                async with asyncio.TaskGroup() as group:
                    for each in given:
                        group.create_task(one(each), name=f"keeping {each.service.name}")
            except* RegistryError as errors:
                # The first one ended the others.
                raise errors.exceptions[0] from None
    return code


class _Telling(logging.Handler):
    """Tells what the SDK logs, such as that a service could not be unregistered."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Tells it in one line."""
        self._out.error(record.getMessage())


@contextmanager
def _told(out: Output) -> Iterator[None]:
    handler = _Telling(out)
    log = logging.getLogger("registry_client")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _tell(out: Output, name: str, state: RegistrationState, error: RegistryError | None) -> None:
    if state is not RegistrationState.ENDED:
        out.remark(f"{name} is {state.value}" + (f": {error}" if error else ""))


@contextmanager
def _ended_by_signal() -> Iterator[asyncio.Event]:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        restore()  # a second signal ends the process at once
        ended.set()

    def restore() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    # Also where SIGINT is ignored, as in the background of a script: Ctrl-C ends the agent there, and who keeps a lease
    # for it must not outlive it.
    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        yield ended
    finally:
        restore()

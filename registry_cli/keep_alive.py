"""``register --keep-alive``: keeps services registered until the program receives a signal."""

import asyncio
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from registry_cli.calls import CommandContext
from registry_cli.exits import Exit
from registry_cli.files import ServiceInput
from registry_cli.output import Output
from registry_cli.signals import ENDING, on_signals, restore_default
from registry_client import RegistrationState, RegistryError

_STATE_TEXTS: Final[Mapping[RegistrationState, str]] = {
    RegistrationState.PENDING: "is not registered",
    RegistrationState.REGISTERED: "is registered",
    RegistrationState.AWAY: "cannot be renewed, retrying",
    RegistrationState.REFUSED: "was refused, retrying",
    RegistrationState.SUPERSEDED: "is no longer renewed",
}


async def keep_registered(
    context: CommandContext, inputs: Sequence[ServiceInput], *, replicas: bool, drain: float
) -> Exit:
    """Register services and renew their leases until SIGINT or SIGTERM, then drain and unregister them.

    While the registry is unavailable the command retries, and it registers services again that the registry has lost. A
    second signal ends the process immediately, and the leases expire.

    Returns:
        ``OK`` if the registry has confirmed that all services are removed, else ``UNAVAILABLE``.

    Raises:
        RegistryError: The first registration of a service failed; the other services are unregistered.
    """
    code = Exit.OK
    with _end_on_signal() as ended, sdk_warnings_to(context.out):
        # Only the first calls fail immediately; from then on the client of the registrations retries.
        async with context.connection.create_client(retry=True) as client:

            async def keep_one(each: ServiceInput) -> None:
                nonlocal code
                block = client.registration(each.service, replicas=replicas, drain=drain, sigterm=False)
                async with block as registration:
                    context.out.print_line(f"{registration.name} registered, revision {registration.service.revision}")
                    registration.on_change(
                        lambda state: print_state(context.out, registration.name, state, registration.error)
                    )
                    await ended.wait()
                if not registration.removed:
                    code = Exit.UNAVAILABLE
                elif registration.state is not RegistrationState.SUPERSEDED:
                    context.out.print_line(f"{registration.name} unregistered")

            await context.client.get_registry_health()  # fails immediately if the registry is unreachable
            try:
                async with asyncio.TaskGroup() as group:
                    for each in inputs:
                        group.create_task(keep_one(each), name=f"keeping {each.service.name}")
            except BaseExceptionGroup as errors:
                # The first error has cancelled the other tasks.
                raise errors.exceptions[0] from None
    return code


class _OutputHandler(logging.Handler):
    """Prints log messages of the SDK, such as that a service could not be unregistered."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log message as an error."""
        self._out.print_error(record.getMessage())


@contextmanager
def sdk_warnings_to(out: Output) -> Iterator[None]:
    """Print the warnings of the SDK as errors within the block."""
    handler = _OutputHandler(out)
    log = logging.getLogger("registry_client")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def print_state(out: Output, name: str, state: RegistrationState, error: RegistryError | None) -> None:
    """Print a notice about the new state of a registration."""
    if state in _STATE_TEXTS:
        out.print_notice(f"{name} {_STATE_TEXTS[state]}" + (f": {error}" if error else ""))


@contextmanager
def _end_on_signal() -> Iterator[asyncio.Event]:
    ended = asyncio.Event()

    def end(_number: signal.Signals) -> None:
        restore_default(ENDING)  # a second signal ends the process immediately
        ended.set()

    with on_signals(ENDING, end):
        yield ended

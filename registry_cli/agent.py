"""``run``: a program of any language as an agent, whose service is registered while it runs."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from registry_cli.calls import CommandContext
from registry_cli.exits import Exit, Failure
from registry_cli.keep_alive import print_state, sdk_warnings_to
from registry_cli.signals import ENDING, on_signals
from registry_client import Registration, RegistrationState, RegistryClient, RegistryError, Service

_FORWARDED: Final = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH") if hasattr(signal, name)
)
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_CONNECT_SECONDS: Final = 1.0
_CONNECT_INTERVAL_SECONDS: Final = 0.1
_SLOW_START_SECONDS: Final = 10.0
"""Time after which a notice explains why the service is not registered yet."""


async def run_agent(
    context: CommandContext, services: Sequence[Service], command_line: Sequence[str], *, replicas: bool, drain: float
) -> int:
    """Run a command, and keep its services registered from when their endpoints answer until it has ended.

    An unavailable registry delays the registration, but not the command.

    Args:
        context: The registry, and where to print notices. Standard output belongs to the command.
        services: The services of the command.
        command_line: The command and its arguments.
        replicas: Whether each service gets a unique name in a group.
        drain: Seconds between the first SIGINT or SIGTERM and its delivery to the command.

    Returns:
        Exit code of the command; 128 + N if signal N ended it.

    Raises:
        Failure: The command cannot be run.
        RegistryError: The registry refused the first registration of a service; the command was sent SIGTERM.
    """
    agent = _Agent(context, drain)
    with on_signals((*ENDING, *_FORWARDED), agent.receive), sdk_warnings_to(context.out):
        process = await agent.start(command_line)
        try:
            async with context.connection.create_client(retry=True) as client, asyncio.TaskGroup() as group:
                for service in services:
                    registration = client.registration(service, replicas=replicas, wait=False, sigterm=False)
                    group.create_task(agent.keep_registered(client, registration), name=f"keeping {registration.name}")
                await agent.run_to_end(process)
        finally:
            if process.returncode is None:
                agent.send(signal.SIGTERM)
    if agent.refusal is not None:
        raise agent.refusal
    code = await process.wait()
    return code if code >= 0 else 128 - code


class _Agent:
    """A command and its services."""

    def __init__(self, context: CommandContext, drain: float) -> None:
        self._out = context.out
        self._process: Process | None = None
        self._drain = drain
        self._registered: set[str] = set()
        self._leaving = asyncio.Event()
        self._skip_drain = asyncio.Event()
        self._ended = asyncio.Event()
        self._end_signal = signal.SIGTERM
        self.refusal: RegistryError | None = None
        """Why the first registration of a service was refused."""

    def receive(self, number: signal.Signals) -> None:
        """Handle a signal: the first one that ends the agent starts the drain, the others reach the command."""
        if number in ENDING and not self._leaving.is_set():
            self._end_signal = number
            self._leaving.set()
        elif number in ENDING and not self._skip_drain.is_set():
            self._skip_drain.set()
        else:
            self.send(number)

    async def start(self, command_line: Sequence[str]) -> Process:
        """Start the command.

        Raises:
            Failure: It cannot be run.
        """
        # In a process group of its own: otherwise Ctrl-C would end the command before its service drains. Such a group
        # may not read from the terminal.
        group: dict[str, Any] = {"process_group": 0} if hasattr(os, "killpg") else {}
        stdin = DEVNULL if sys.stdin is None or sys.stdin.isatty() else None
        try:
            self._process = await asyncio.create_subprocess_exec(*command_line, stdin=stdin, **group)
        except OSError as error:
            code = Exit.NO_COMMAND if isinstance(error, FileNotFoundError) else Exit.CANNOT_RUN
            raise Failure(f"cannot run {command_line[0]}: {error.strerror}", code) from None
        return self._process

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command and to the processes that it has started, which a shell would not forward."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def run_to_end(self, process: Process) -> None:
        """Wait until the command has ended; after a signal, drain and forward it."""
        exited = asyncio.create_task(process.wait(), name="command")
        await _first(exited, self._leaving.wait())
        if not exited.done():
            await _first(exited, self._skip_drain.wait(), asyncio.sleep(self._drain))
            self._skip_drain.set()
            self.send(self._end_signal)
        await exited
        self._ended.set()

    async def keep_registered(self, client: RegistryClient, registration: Registration) -> None:
        """Keep a service registered from when its endpoint answers until the command has ended."""
        answering = asyncio.create_task(self._wait_until_answering(registration.service))
        await _first(answering, self._ended.wait(), self._leaving.wait())
        if not answering.done() or answering.cancelled():
            answering.cancel()
            return
        registration.on_change(lambda state: self._report(registration, state))
        async with registration:
            await self._warn_if_unreachable(client, registration)
            await _first(self._ended.wait(), self._leaving.wait())
            if not self._ended.is_set() and registration.name in self._registered:
                await registration.start_draining()
            await self._ended.wait()
        if registration.removed and registration.state is not RegistrationState.SUPERSEDED:
            self._out.print_notice(f"{registration.name} unregistered")

    def _report(self, registration: Registration, state: RegistrationState) -> None:
        if state is RegistrationState.REFUSED and registration.name not in self._registered:
            self.refusal = registration.error
            self._skip_drain.set()
            self._leaving.set()
            return
        if state is RegistrationState.REGISTERED:
            self._registered.add(registration.name)
        print_state(self._out, registration.name, state, registration.error)

    async def _warn_if_unreachable(self, client: RegistryClient, registration: Registration) -> None:
        try:
            await client.get_registry_health()
        except RegistryError as error:
            if registration.state is RegistrationState.PENDING:
                print_state(self._out, registration.name, registration.state, error)

    async def _wait_until_answering(self, service: Service) -> None:
        """Wait until the endpoint of a service accepts connections, if it has a port."""
        parts = urlsplit(service.endpoint)
        with suppress(ValueError):  # a bad port, which the registry reports
            if not (port := parts.port or _DEFAULT_PORTS.get(parts.scheme)):
                return
            loop = asyncio.get_running_loop()
            slow = loop.call_later(
                _SLOW_START_SECONDS,
                self._out.print_notice,
                f"{service.name} is not registered yet: {service.endpoint} does not accept connections",
            )
            try:
                while not await _accepts_connections(parts.hostname or "localhost", port):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(_CONNECT_INTERVAL_SECONDS)
            finally:
                slow.cancel()


async def _first(*waits: Awaitable[object]) -> None:
    """Return when one of several waits has ended; cancel the others, except for tasks of the caller."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:
                task.cancel()


async def _accepts_connections(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

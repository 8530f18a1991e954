"""Exit codes, which ``docs/cli.md`` documents for scripts, and the exception that sets them."""

import sys
from enum import IntEnum
from typing import IO, Any

import click

from registry_cli.text import escape


class Exit(IntEnum):
    """Exit codes of the commands."""

    OK = 0
    FAILED = 1
    """The command failed, completely or for some of several services."""
    USAGE = 2
    """Invalid flags, an invalid file, or a request that the registry rejects as invalid."""
    NOT_FOUND = 3
    """The service is not registered, or the cursor has expired."""
    UNAVAILABLE = 4
    """The registry is unavailable or did not respond in time."""
    CONFLICT = 5
    """The service exists already, is at another revision, or belongs to another instance."""
    DENIED = 6
    """The token is missing, was rejected or does not permit the call."""
    UNHEALTHY = 7
    """``health`` and ``check``: the status is neither healthy nor degraded."""
    CANNOT_RUN = 126
    """``run``: the command cannot be executed, as in shells."""
    NO_COMMAND = 127
    """``run``: the command does not exist, as in shells."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, the convention of shells."""
    BROKEN_PIPE = 141
    """The reader of the output closed the pipe: 128 + SIGPIPE."""


class Failure(click.ClickException):
    """A failure of a command, printed to standard error without a traceback.

    Args:
        message: The problem and, after a semicolon, a hint how to solve it.
        code: Exit code.
    """

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = code  # type: ignore[misc] # click reads it from the exception

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        for line in self.message.splitlines():
            click.echo(f"ossa-registry: {escape(line)}", file=file or sys.stderr)

"""Exit codes, and failures that are told in one line. What the codes mean to scripts is in ``docs/cli.md``."""

import sys
from enum import IntEnum
from typing import IO, Any

import click

from registry_cli.text import plain


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    """It failed, or a part of it did."""
    USAGE = 2
    """Wrong flags, a bad file, or a request that the registry refuses as it is."""
    NOT_FOUND = 3
    """No such service, or no longer such a cursor."""
    UNAVAILABLE = 4
    """No registry answers, or not in time."""
    CONFLICT = 5
    """It exists already, or is at another revision."""
    DENIED = 6
    NOT_WELL = 7
    """``health`` and ``check``: the status is neither healthy nor degraded."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as shells have it."""
    BROKEN_PIPE = 141
    """The reader of the output went away: 128 + SIGPIPE."""


class Failure(click.ClickException):
    """What is told in one line on standard error.

    Args:
        message: What is wrong and, after a semicolon, what may help.
        code: Exit code.
    """

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = code  # type: ignore[misc] # click reads it off the exception

    def show(self, file: IO[Any] | None = None) -> None:
        """Tells it."""
        for line in self.message.splitlines():
            click.echo(f"ossa-registry: {plain(line)}", file=file or sys.stderr)

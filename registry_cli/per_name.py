"""Commands that take several names: each name is processed independently of the others."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar

import click

from registry_cli.calls import CommandContext
from registry_cli.completion import SERVICE_NAME
from registry_cli.exits import Exit
from registry_client import RegistryError, RegistryUnavailable

T = TypeVar("T")

NAMES: Final = click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE_NAME)
"""The argument of commands that take one or several names."""


class Outcome(NamedTuple, Generic[T]):
    """The results of a call for several names."""

    results: list[tuple[str, T]]
    """Names and results of the successful calls, in the order given."""
    code: Exit
    """Exit code of the first failure; ``OK`` if there was none."""


async def call_for_each_name(
    context: CommandContext, names: Iterable[str], rpc: Callable[[str], Awaitable[T]]
) -> Outcome[T]:
    """Make a call for one name after another, and print the failures.

    Raises:
        RegistryUnavailable: The registry does not respond; the remaining names are not attempted.
    """
    results: list[tuple[str, T]] = []
    code = Exit.OK
    for name in dict.fromkeys(names):
        try:
            results.append((name, await rpc(name)))
        except RegistryUnavailable:
            raise
        except RegistryError as error:
            failure = context.failure(error)
            context.out.print_error(failure.message)
            code = code or failure.code
    return Outcome(results, code)

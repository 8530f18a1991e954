"""Commands that take several names: each stands alone, and the first failure gives the exit code."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from registry_cli.calls import Call
from registry_cli.exits import Exit
from registry_client import RegistryError, RegistryUnavailable

T = TypeVar("T")


class Outcome(NamedTuple, Generic[T]):
    """What became of several names."""

    results: list[tuple[str, T]]
    """Names, in the order given, with what came for them."""
    code: Exit
    """Exit code of the first one that failed."""


async def each(call: Call, names: Iterable[str], ask: Callable[[str], Awaitable[T]]) -> Outcome[T]:
    """Asks for one name after another; tells what fails, and goes on unless nobody answers."""
    results: list[tuple[str, T]] = []
    code = Exit.OK
    for name in dict.fromkeys(names):
        try:
            results.append((name, await ask(name)))
        except RegistryUnavailable:
            raise
        except RegistryError as error:
            failure = call.failure(error)
            call.out.error(failure.message)
            code = code or failure.code
    return Outcome(results, code)

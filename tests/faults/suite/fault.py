"""``Fault``: a kind of fault, defined by a function that injects it and, after its ``yield``, removes it."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults.suite.history import Promises
from tests.faults.suite.load import Load
from tests.faults.suite.stage import Deployment, Stage

Injection = Callable[[Stage, Load, random.Random], AbstractAsyncContextManager[None]]
Body = Callable[[Stage, Load, random.Random], AsyncIterator[None]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: Name on the command line and in the table.
        summary: Description for the table.
        inject: Injects the fault into a run, and removes it at the end of the context.
        deployment: Deployment of Redis.
        needs: Arguments of ``staged`` that the fault needs.
        flags: Settings of the registry.
        promises: Promises that hold under the fault.
        group: Target of the fault. A mix has at most one fault per group; a fault without a group is in no mix.
    """

    name: str
    summary: str
    inject: Injection
    deployment: Deployment = "alone"
    needs: dict[str, bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    promises: Promises = field(default_factory=Promises)
    group: str = ""


def fault(name: str, summary: str, **attributes: Any) -> Callable[[Body], Fault]:
    """Return a decorator that creates a fault from a function."""
    return lambda body: Fault(name, summary, asynccontextmanager(body), **attributes)

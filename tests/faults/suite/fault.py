"""``Fault``: one kind of fault, made of a function that begins it and, after its ``yield``, ends it."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.faults.suite.history import Promises
from tests.faults.suite.load import Load
from tests.faults.suite.stage import Deployment, Stage

Over = Callable[[Stage, Load, random.Random], AbstractAsyncContextManager[None]]
Body = Callable[[Stage, Load, random.Random], AsyncIterator[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: What it is called on the command line and in the table.
        summary: What happens, for the table.
        over: Begins it over a run, and ends it.
        deployment: How Redis is run.
        needs: Arguments of ``staged`` that it needs.
        flags: Settings of the registry.
        promises: What holds under it.
        group: What it is done to: of two that are done to one thing, a mix has one. Without, it is in no mix.
    """

    name: str
    summary: str
    over: Over
    deployment: Deployment = "alone"
    needs: dict[str, bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    promises: Promises = field(default_factory=Promises)
    group: str = ""


def fault(name: str, summary: str, **more: Any) -> Callable[[Body], Fault]:
    """Makes a fault of a function."""
    return lambda body: Fault(name, summary, asynccontextmanager(body), **more)

"""The catalogue of faults, and mixes of them."""

import random

from tests.faults.suite import failovers, faults
from tests.faults.suite.fault import Fault
from tests.faults.suite.stage import COMPILER

CATALOGUE = {
    fault.name: fault for module in (faults, failovers) for fault in vars(module).values() if isinstance(fault, Fault)
}
"""By name."""


def possible(fault: Fault) -> str:
    """Why a fault cannot be made on this machine; empty if it can."""
    return "there is no C compiler" if "clock" in fault.needs and COMPILER is None else ""


def mixture(seed: int) -> list[str]:
    """Two or three faults of a Redis alone, chosen by a seed, of which no two are done to the same thing."""
    chance = random.Random(f"mix {seed}")
    groups: dict[str, list[str]] = {}
    for fault in CATALOGUE.values():
        if fault.group and not possible(fault):
            groups.setdefault(fault.group, []).append(fault.name)
    chosen = chance.sample(sorted(groups), chance.choice((2, 3)))
    # Those first that ask something of Redis as they begin: it may be away later.
    return [chance.choice(groups[group]) for group in sorted(chosen, key=lambda group: group != "data")]

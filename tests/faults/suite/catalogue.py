"""The catalogue of faults, and mixes of faults."""

import random

from tests.faults.suite import failovers, faults
from tests.faults.suite.fault import Fault
from tests.faults.suite.stage import COMPILER

CATALOGUE = {
    fault.name: fault for module in (faults, failovers) for fault in vars(module).values() if isinstance(fault, Fault)
}
"""Faults by name."""


def reason_to_skip(fault: Fault) -> str:
    """Return why a fault cannot be injected on this machine, or an empty string."""
    return "no C compiler" if "clock" in fault.needs and COMPILER is None else ""


def mixture(seed: int) -> list[str]:
    """Return two or three faults of a standalone Redis with different targets, chosen by a seed."""
    rng = random.Random(f"mix {seed}")
    groups: dict[str, list[str]] = {}
    for fault in CATALOGUE.values():
        if fault.group and not reason_to_skip(fault):
            groups.setdefault(fault.group, []).append(fault.name)
    chosen = rng.sample(sorted(groups), rng.choice((2, 3)))
    # Faults that send commands to Redis come first: it may be unavailable later.
    return [rng.choice(groups[group]) for group in sorted(chosen, key=lambda group: group != "data")]

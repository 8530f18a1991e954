"""How figures are printed."""

import os
import platform
from importlib.metadata import version


class Report:
    """Prints figures as they come, each with its bound."""

    def __init__(self) -> None:
        self.failed = 0

    def machine(self) -> None:
        """Says what was measured on, and with what."""
        packages = " ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "redis", "uvloop"))
        print(f"Python {platform.python_version()}, {packages}, {os.cpu_count()} CPUs, {platform.machine()}")

    def title(self, text: str) -> None:
        """Begins a scenario."""
        print(f"\n{text}")

    def skipped(self, title: str, missing: str) -> None:
        """Says that a scenario cannot be measured here."""
        print(f"\n{title}: skipped, without {missing}")

    def line(self, what: str, value: str) -> None:
        """Prints a figure without a bound."""
        print(f"  {what:<58} {value:>14}", flush=True)

    def at_most(self, what: str, value: float, bound: float, unit: str) -> None:
        """Prints a figure that has to be small."""
        self._judged(what, value, f"<= {bound:g} {unit}", unit, ok=value <= bound)

    def at_least(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Prints a figure that has to be large."""
        self._judged(what, value, f">= {bound:g} {unit}".rstrip(), unit, ok=value >= bound)

    def _judged(self, what: str, value: float, bound: str, unit: str, *, ok: bool) -> None:
        self.failed |= not ok
        print(f"  {what:<58} {value:>10.4g} {unit:<3} {bound:<12} {'ok' if ok else 'NOT KEPT'}", flush=True)

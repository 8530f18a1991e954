"""Sources and digests of the Lua scripts."""

import hashlib
from importlib import resources
from typing import Final

SCRIPT_NAMES: Final = (
    "check",
    "checks",
    "commit",
    "head",
    "members",
    "notice",
    "renew",
    "repair_end",
    "repair_events",
    "repair_services",
    "repair_turn",
    "sweep",
)


class Scripts:
    """Source and SHA-1 of every script in ``scripts/``, each with ``lib.lua`` prepended."""

    def __init__(self) -> None:
        folder = resources.files(__package__) / "scripts"
        library = (folder / "lib.lua").read_text(encoding="utf-8")
        self.sources = {
            name: f"{library}\n{(folder / f'{name}.lua').read_text(encoding='utf-8')}" for name in SCRIPT_NAMES
        }
        self.digests = {
            # EVALSHA identifies scripts by SHA-1; no security property depends on it.
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self.sources.items()
        }

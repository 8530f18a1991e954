"""The Lua scripts, as Redis gets them."""

import hashlib
from importlib import resources
from typing import Final

NAMES: Final = (
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
    """Source and SHA-1 of every script in ``scripts/``; each is preceded by ``lib.lua``."""

    def __init__(self) -> None:
        folder = resources.files(__package__) / "scripts"
        library = (folder / "lib.lua").read_text(encoding="utf-8")
        self.sources = {name: f"{library}\n{(folder / f'{name}.lua').read_text(encoding='utf-8')}" for name in NAMES}
        self.digests = {
            # Redis names a script by SHA-1; nothing rests on its strength.
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self.sources.items()
        }

"""Sources and digests of the Lua scripts."""

import hashlib
from importlib import resources
from typing import Final

_FOLDER: Final = resources.files(__package__) / "scripts"
_LIBRARY: Final = "lib"
_NAMES: Final = sorted(file.name.removesuffix(".lua") for file in _FOLDER.iterdir() if file.name.endswith(".lua"))
SCRIPT_NAMES: Final = tuple(name for name in _NAMES if name != _LIBRARY)


class Scripts:
    """Source and SHA-1 of every script in ``scripts/``, each with ``lib.lua`` prepended."""

    def __init__(self) -> None:
        library = _read(_LIBRARY)
        self.sources = {name: f"{library}\n{_read(name)}" for name in SCRIPT_NAMES}
        self.digests = {
            # EVALSHA identifies scripts by SHA-1; no security property depends on it.
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self.sources.items()
        }


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")

"""Sources and digests of the Lua scripts."""

import hashlib
import re
from importlib import resources
from typing import Final

_FOLDER: Final = resources.files(__package__) / "scripts"
_LIBRARY: Final = "lib"
_NAMES: Final = sorted(file.name.removesuffix(".lua") for file in _FOLDER.iterdir() if file.name.endswith(".lua"))
SCRIPT_NAMES: Final = tuple(name for name in _NAMES if name != _LIBRARY)
# The position of an error in a script, before and since Redis 7.
_LINE: Final = re.compile(r"user_script: ?(\d+)")
_CALL: Final = re.compile(r"redis\.call\('(\w+)'(?:, (\w+))?")


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
        self.names = {digest: name for name, digest in self.digests.items()}

    def find_call(self, name: str, error_text: str) -> tuple[str, str]:
        """Return the command that failed in a script, and the variable of its key; empty if the error has no line."""
        lines = _LINE.findall(error_text)
        source = self.sources[name].splitlines()
        call = _CALL.search(source[int(lines[-1]) - 1]) if lines and int(lines[-1]) <= len(source) else None
        return (call[1], call[2] or "") if call else ("", "")


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")

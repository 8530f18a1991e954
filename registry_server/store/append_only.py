"""The append-only file of an embedded Redis: detection of lost data, and what to do when Redis cannot load it.

Redis starts with an empty database if it finds no append-only file, and overwrites files that its manifest does not
list. The registry would then appear empty, and so refuses to start in a data directory whose data is missing.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from registry_server.errors import ConfigurationError

_MARKER: Final = "registry.marker"
_OLD_FILE: Final = "appendonly.aof"  # the only file of Redis 6, and the base file of Redis 7 after an upgrade
_DIRECTORY: Final = "appendonlydir"
_MANIFEST: Final = "appendonly.aof.manifest"
_PART: Final = re.compile(r"appendonly\.aof(?:\.(?P<sequence>\d+)\.(?P<kind>base|incr)\.(?:rdb|aof))?")
_CHECK_TOOLS: Final = ("redis-check-aof", "valkey-check-aof")
_LOG_PREFIX: Final = r"\d+:[A-Z] .{20,26} [%s] "
"""Process, role, time and level, as in ``13:M 30 Nov 2026 16:01:02.345 # ``."""
_ANY_LEVEL: Final = re.compile(_LOG_PREFIX % "*#.-")
_ERROR: Final = re.compile(_LOG_PREFIX % "#" + r"(?!WARNING|Server initialized)")
_MAX_CAUSE_LENGTH: Final = 500


def check_directory(data_dir: Path) -> None:
    """Refuse a data directory in which Redis would start without the data that was there.

    Raises:
        ConfigurationError: Files are missing; the message says how to continue.
        OSError: The directory cannot be read.
    """
    directory = data_dir / _DIRECTORY
    manifest = directory / _MANIFEST
    parts = _parts(directory)
    listed = manifest.exists() and manifest.stat().st_size > 0
    if parts and not listed:
        raise ConfigurationError(
            f"data_dir: {manifest} is missing or empty, and without it Redis would discard the data in "
            f"{', '.join(parts)}; {_restore_manifest(directory)}"
        )
    for name, match in parts.items():
        if match["kind"] == "base" and (directory / name).stat().st_size == 0:
            raise ConfigurationError(
                f"data_dir: {directory / name} is empty, and Redis would start without the data that it held; "
                f"{_restore_file(directory / name, manifest)}"
            )
    if not listed and not (data_dir / _OLD_FILE).exists():
        require_unmarked(data_dir, "its append-only file is missing")


def require_unmarked(data_dir: Path, reason: str) -> None:
    """Refuse a data directory that held services and from which Redis loads none.

    Raises:
        ConfigurationError: The directory is marked; the message says how to continue.
    """
    marker = data_dir / _MARKER
    if marker.exists():
        raise ConfigurationError(
            f"data_dir: {data_dir} held a registry, but {reason}; restore the directory from a backup, or remove "
            f"{marker} to start with an empty registry"
        )


def is_marked(data_dir: Path) -> bool:
    """Return whether Redis has held data in this directory."""
    return (data_dir / _MARKER).exists()


def mark(data_dir: Path) -> None:
    """Record that Redis holds data in this directory, so that its loss is detected at the next start."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    (data_dir / _MARKER).write_text(
        f"An ossa-registry has kept its data in this directory since {now}.\n"
        "It does not start if that data is missing; remove this file to start with an empty registry.\n"
    )


def truncation(log: str) -> str:
    """Return which part of a file Redis removed while it loaded the data, from its log; empty if it removed none."""
    found = re.search(r"Truncating the AOF (.*?at offset \d+)", log)
    return found[1] if found else ""


def explain_failure(log: str, data_dir: Path, binary: Path) -> str:
    """Return why redis-server ended, and the command that recovers it if there is one.

    Args:
        log: What redis-server has logged since it was started.
        data_dir: Its data directory.
        binary: The program.
    """
    for pattern, remedy in _REMEDIES:
        if found := re.search(pattern, log):
            return f"{_one_line(found[0])}; {remedy(found, data_dir, binary)}"
    errors = [line for line in log.splitlines() if _ERROR.match(line)]
    return _one_line(" ".join(errors[-2:])) or "it logged no reason"


def _parts(directory: Path) -> dict[str, re.Match[str]]:
    """Return the files of an append-only directory that hold data, in the order of their sequence numbers."""
    if not directory.exists():
        return {}
    found = [match for path in directory.iterdir() if (match := _PART.fullmatch(path.name))]
    found.sort(key=lambda match: (match["kind"] or "", int(match["sequence"] or 1)))
    return {match[0]: match for match in found}


def _restore_manifest(directory: Path) -> str:
    """Return how to restore the manifest from the names of the files that it listed."""
    parts = _parts(directory)
    lines = "".join(
        f"file {name} seq {match['sequence'] or 1} type {'i' if match['kind'] == 'incr' else 'b'}\\n"
        for name, match in parts.items()
    )
    if lines.count("type b") > 1:  # a rewrite had just ended, and only the manifest knew which files it replaced
        return f"restore {directory} from a backup"
    return f"restore it from a backup, or with: printf {shlex.quote(lines)} > {shlex.quote(str(directory / _MANIFEST))}"


def _restore_file(path: Path, manifest: Path) -> str:
    remove = shlex.join(["rm", "-f", str(path)])
    unlist = shlex.join(["sed", "-i.bak", f"/^file {path.name} /d", str(manifest)])
    return f"restore {path} from a backup, or continue without what it held after: {remove}; {unlist}"


def _cut(found: re.Match[str], data_dir: Path, binary: Path) -> str:
    path = _path(found["file"], data_dir)
    for name in _CHECK_TOOLS:
        if tool := shutil.which(name, path=str(binary.parent)) or shutil.which(name):
            command = shlex.join([tool, "--fix", str(path)])
            break
    else:  # redis-server contains the tool and runs it if it is started under its name
        script = shlex.join(["exec", "-a", _CHECK_TOOLS[0], str(binary), "--fix", str(path)])
        command = shlex.join(["bash", "-c", script])
    return f"copy {data_dir}, then remove the damaged part and what follows it in the file with: {command}"


def _newer_version(*_: object) -> str:
    return "a newer version of Redis has written the data: install that version"


def _missing_file(found: re.Match[str], data_dir: Path, _: Path) -> str:
    return _restore_file(_path(found["file"], data_dir), data_dir / _DIRECTORY / _MANIFEST)


def _bad_manifest(_found: re.Match[str], data_dir: Path, _binary: Path) -> str:
    return _restore_manifest(data_dir / _DIRECTORY)


def _bad_base(_found: re.Match[str], data_dir: Path, _binary: Path) -> str:
    return f"restore {data_dir} from a backup"


def _no_access(_found: re.Match[str], data_dir: Path, _binary: Path) -> str:
    return f'let this user read and write it: chown -R "$(id -u)" {shlex.quote(str(data_dir))}'


def _no_space(_found: re.Match[str], data_dir: Path, _binary: Path) -> str:
    return f"free space on the disk of {data_dir}"


_Remedy = Callable[[re.Match[str], Path, Path], str]
_FILE = r"(?P<file>[\w.]*\w)?"
_REMEDIES: Final[tuple[tuple[str, _Remedy], ...]] = (
    (r"Can't handle RDB format version \d+", _newer_version),
    (r"(?:Bad file format|Unexpected end of file|Unknown command '.*') reading the append only file ?" + _FILE, _cut),
    (rf"short read while loading the AOF file {_FILE}(?=!!!)[\s\S]*truncated file is not the last file", _cut),
    (
        rf"(?:The append log|Unable to obtain the AOF) file {_FILE} (?:doesn't exist|length. stat: No such file)",
        _missing_file,
    ),
    (r".*Permission denied", _no_access),
    (r".*No space left on device", _no_space),
    (r"FATAL AOF MANIFEST FILE ERROR[\s\S]*", _bad_manifest),
    (r"Error reading the RDB preamble of the AOF file|Wrong RDB checksum|Internal error in RDB.*", _bad_base),
)
"""Text in the log of redis-server 6.2 to 8, and what to do; version 6.2 names no files."""


def _path(file: str | None, data_dir: Path) -> Path:
    return data_dir / _DIRECTORY / file if file else data_dir / _OLD_FILE


def _one_line(text: str) -> str:
    """Return text from the log in one line, without the prefix of a log line."""
    return " ".join(_ANY_LEVEL.sub("", text).split())[:_MAX_CAUSE_LENGTH]

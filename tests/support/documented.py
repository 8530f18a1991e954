"""The environment in which the commands of the documents run: a fresh server, and the programs by their names."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.support.console import Substitutions
from tests.support.server import ServerProcess

GRPC: Final = "localhost:50051"
HTTP: Final = "localhost:3002"


@asynccontextmanager
async def as_documented() -> AsyncIterator[Substitutions]:
    """Run a server in place of the one that ``make run`` starts."""
    # Not pytest's directory: its path may be too long for the socket of the embedded Redis.
    with tempfile.TemporaryDirectory(prefix="ossa-") as directory:
        async with ServerProcess(f"--data-dir={directory}", "--health-check.enabled=true") as server:
            yield Substitutions(
                {
                    GRPC: server.grpc_address,
                    HTTP: server.http_address,
                    ".data": directory,
                    ".venv/bin": str(Path(sys.executable).parent),
                }
            )


def environment(substitutions: Substitutions) -> dict[str, str]:
    """Return environment variables with which commands find ``ossa-registry``, and ``ossa-registry`` the server."""
    removed = ("OSSA_REGISTRY_", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    return kept | {
        "OSSA_REGISTRY_TARGET": substitutions.values[GRPC],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "TZ": "UTC",
    }

"""``RegistryProcess``: a dedicated registry process for tests."""

import asyncio
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

START_TIMEOUT: Final = 30.0
"""Seconds until a start counts as failed; generous, for busy machines."""

_PORTS: Final = range(20_000, 32_000)
"""Below the ephemeral ports of Linux and macOS, so that no outgoing connection takes the port between two starts."""
_POLL_SECONDS: Final = 0.02
_STOP_TIMEOUT_SECONDS: Final = 15.0


class RegistryProcess:
    """A registry as a separate process, for ``with`` and ``async with``.

    It can be killed and started again; its address and its services stay the same. Health checks are disabled by
    default, because most tests register endpoints that do not exist.

    Args:
        *flags: Additional flags of ``ossa-registry serve``, such as ``"--health-check.enabled=true"``.
    """

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        # Not below pytest's directories: the path of the embedded Redis' Unix socket would be too long.
        self._directory = tempfile.TemporaryDirectory(prefix="ossa-")
        self._process: subprocess.Popen[bytes] | None = None
        self._target = ""

    @property
    def target(self) -> str:
        """Address for ``RegistryClient``; the same after each start."""
        if not self._target:
            raise RuntimeError("the registry was not started yet")
        return self._target

    @property
    def running(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Log of the current or last process: one JSON object per line."""
        with suppress(FileNotFoundError):
            return self._log_file.read_text(encoding="utf-8", errors="replace")
        return ""

    def start(self) -> None:
        """Start the process; return once it serves.

        Raises:
            RuntimeError: The registry is already running, is not installed, or failed to start. In the last case the
                message contains its log.
        """
        if self._process is not None:
            raise RuntimeError("the registry is already running")
        if importlib.util.find_spec("registry_server") is None:
            raise RuntimeError(
                "registry_client.testing needs the registry server, which is not installed: "
                "install ossa-registry instead of ossa-registry-client"
            )
        for _ in range(1 if self._target else 5):
            address = self._target or f"127.0.0.1:{_free_port()}"
            if self._start_process(address):
                self._target = address
                return
            self.kill()
        raise RuntimeError(f"the registry failed to start:\n{self.log}")

    def stop(self) -> None:
        """Stop the process with SIGTERM, which drains it; kill it if that takes too long. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_SECONDS)
            self.kill()

    def kill(self) -> None:
        """Kill the process with SIGKILL, like a crash. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop the process, if it is running, and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the process and remove its data. Idempotent."""
        self.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def _log_file(self) -> Path:
        return Path(self._directory.name) / "registry.log"

    def _start_process(self, address: str) -> bool:
        command = [
            *(sys.executable, "-m", "registry_server"),
            *(f"--grpc.address={address}", "--http.address=127.0.0.1:0", f"--data-dir={self._directory.name}/data"),
            *("--log.format=json", "--health-check.enabled=false", "--shutdown.grace-seconds=2", *self._flags),
        ]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OSSA_REGISTRY_")}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 - our own command
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._is_serving():
                return True
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_SECONDS)
        return False

    def _is_serving(self) -> bool:
        for line in self.log.splitlines():
            with suppress(ValueError):
                if json.loads(line).get("event") == "ossa-registry serves":
                    return True
        return False


def _free_port() -> int:
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port was found")

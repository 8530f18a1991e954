"""``RegistryProcess``: a registry of one's own, for tests."""

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
"""Seconds that a registry may take to start, on a busy machine."""

_PORTS: Final = range(20_000, 32_000)
"""Below the ephemeral ports of Linux and macOS: nobody's outgoing connection takes the port between two starts."""
_POLL: Final = 0.02
_GRACE: Final = 15.0


class RegistryProcess:
    """A registry as a process, for ``with`` and ``async with``.

    It can be killed and started again: the address and what is registered stay the same. Services are not probed unless
    a flag says so, since the endpoints of most tests are nowhere.

    Args:
        *flags: Further flags of ``ossa-registry serve``, such as ``"--health-check.enabled=true"``.
    """

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        # Not below pytest's directories: such a path may be too long for the socket of the embedded Redis.
        self._directory = tempfile.TemporaryDirectory(prefix="ossa-")
        self._process: subprocess.Popen[bytes] | None = None
        self._target = ""

    @property
    def target(self) -> str:
        """Address for ``RegistryClient``; the same after each start."""
        if not self._target:
            raise RuntimeError("this registry was not started yet")
        return self._target

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the process that runs, or ran last, has logged: one JSON object a line."""
        with suppress(FileNotFoundError):
            return self._log_file.read_text(encoding="utf-8", errors="replace")
        return ""

    def start(self) -> None:
        """Starts it; returns once it serves.

        Raises:
            RuntimeError: It runs already, is not installed, or does not start; then the message has its log.
        """
        if self._process is not None:
            raise RuntimeError("this registry runs already")
        if importlib.util.find_spec("registry_server") is None:
            raise RuntimeError(
                "registry_client.testing starts a registry, which is not installed: "
                "install ossa-registry in the place of ossa-registry-client"
            )
        for _ in range(1 if self._target else 5):
            address = self._target or f"127.0.0.1:{_free_port()}"
            if self._starts(address):
                self._target = address
                return
            self.kill()
        raise RuntimeError(f"the registry does not start:\n{self.log}")

    def stop(self) -> None:
        """Ends it as SIGTERM does, with a drain; kills it if that takes too long. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
            self.kill()

    def kill(self) -> None:
        """Ends it with SIGKILL, as a crash would. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Ends it, if it runs, and starts it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Ends it and removes its data. Idempotent."""
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

    def _starts(self, address: str) -> bool:
        command = [
            *(sys.executable, "-m", "registry_server"),
            *(f"--grpc.address={address}", "--http.address=127.0.0.1:0", f"--data-dir={self._directory.name}/data"),
            *("--log.format=json", "--health-check.enabled=false", "--shutdown.grace-seconds=2", *self._flags),
        ]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OSSA_REGISTRY_")}
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603 - ours
        until = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None and time.monotonic() < until:
            if self._serves():
                return True
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL)
        return False

    def _serves(self) -> bool:
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

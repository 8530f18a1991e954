"""``Certificates``: certificate, key and client authorities, reloaded when their files change.

The files are checked before a handshake, which costs microseconds, so no watcher is needed. Rotation rejects no
connection and closes none.
"""

import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import structlog

from registry_server.config import TlsSettings
from registry_server.errors import ConfigurationError

CHECK_INTERVAL_SECONDS: Final = 1.0
"""Shortest time between two checks of the files."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """Contents of the files at one moment, which were verified to match."""

    certificate: bytes
    """PEM: the server certificate, followed by its chain."""
    key: bytes
    """PEM: the private key."""
    client_ca: bytes | None
    """PEM: authorities of client certificates; ``None`` = clients need no certificate."""
    context: ssl.SSLContext
    """TLS context for servers."""


class Certificates:
    """Provides the newest valid bundle."""

    def __init__(
        self,
        settings: TlsSettings,
        *,
        optional: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files.

        Args:
            settings: Paths of the files.
            optional: Whether client certificates are optional even though there are authorities.
            monotonic: Clock for the interval between checks of the files, in seconds.

        Raises:
            ConfigurationError: The files cannot be read or do not match.
        """
        self._settings = settings
        self._optional = optional
        # gRPC calls this from its own threads.
        self._lock = threading.Lock()
        self._file_state = self._read_file_state()
        self._monotonic = monotonic
        self._checked_at = monotonic()
        try:
            self._bundle = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._setting_names}: {_reason(error)}") from None

    def current(self) -> Bundle:
        """Return the newest valid bundle: the same object until the files change. Never raises."""
        with self._lock:
            now = self._monotonic()
            if now - self._checked_at >= CHECK_INTERVAL_SECONDS:
                self._checked_at = now
                state = self._read_file_state()
                if state != self._file_state:
                    self._reload(state)
            return self._bundle

    def context(self) -> ssl.SSLContext:
        """Return a TLS context for servers that uses the newest bundle for each handshake."""
        context = self._bundle.context

        def newest(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = newest
        return context

    def _reload(self, state: tuple[object, ...]) -> None:
        try:
            self._bundle = self._read()
        except (OSError, ValueError) as error:
            # Only one file of a pair may have been replaced so far: the next check notices the other one.
            reason = _reason(error)
            log.error("certificate reload failed", files=self._setting_names, reason=reason)  # noqa: TRY400
        else:
            log.info("certificates reloaded", files=self._setting_names)
        self._file_state = state

    @property
    def _setting_names(self) -> str:
        names = ("cert_file", "key_file", *(("client_ca_file",) if self._settings.client_ca_file else ()))
        return ", ".join(f"tls.{name}" for name in names)

    def _files(self) -> Iterator[Path]:
        for file in (self._settings.cert_file, self._settings.key_file, self._settings.client_ca_file):
            if file is not None:
                yield file

    def _read_file_state(self) -> tuple[object, ...]:
        """Return values that change with the files, including symlink targets, which Kubernetes replaces."""
        values: list[object] = []
        for file in self._files():
            try:
                status = os.stat(file)  # noqa: PTH116 - Path.stat() is the same, only slower
            except OSError as error:
                values.append(error.errno)
            else:
                values.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(values)

    def _read(self) -> Bundle:
        settings = self._settings
        if settings.cert_file is None or settings.key_file is None:
            raise ValueError("both files are required")
        before = [file.read_bytes() for file in self._files()]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # Without a callback OpenSSL would prompt on the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL if self._optional else ssl.CERT_REQUIRED
        if before != [file.read_bytes() for file in self._files()]:
            raise ValueError("the files changed while they were read")
        return Bundle(before[0], before[1], before[2] if len(before) > 2 else None, context)  # noqa: PLR2004


def _no_password() -> NoReturn:
    raise ValueError("the private key is encrypted; provide an unencrypted key")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not a certificate with its key: {error.reason or 'not PEM'}"
    if isinstance(error, OSError):
        return f"cannot read {str(error.filename)!r}: {error.strerror}"
    return str(error)


def certificate_names(certificate: object) -> tuple[tuple[str, str], ...]:
    """Return the names in a certificate, as kind and text, from the result of ``getpeercert``."""
    if not isinstance(certificate, dict):
        return ()
    kinds = {"URI": "uri", "DNS": "dns"}
    names = [(kinds[kind], text) for kind, text in certificate.get("subjectAltName", ()) if kind in kinds]
    for part in certificate.get("subject", ()):
        names += [("common_name", text) for kind, text in part if kind == "commonName"]
    return tuple(names)

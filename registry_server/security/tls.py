"""``Certificates``: certificate, key and authorities from files, read again when the files change.

Nobody watches the files: before each handshake somebody asks, and a look at them costs microseconds. So there is no
moment in which a connection is refused, and those that are open stay so.
"""

import os
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import structlog

from registry_server.config import TlsSettings
from registry_server.errors import ConfigurationError

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the files."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """What the files held at one moment, and that it fits together."""

    certificate: bytes
    """PEM: the server's, then those that lead to its authority."""
    key: bytes
    """PEM: its private key."""
    client_ca: bytes | None
    """PEM: the authorities of clients' certificates; ``None``: clients need none."""
    context: ssl.SSLContext
    """For servers."""


class Certificates:
    """The newest bundle that is good."""

    def __init__(self, settings: TlsSettings, *, optional: bool = False) -> None:
        """Reads the files.

        Args:
            settings: Which files.
            optional: Whether clients may come without a certificate although there are authorities.

        Raises:
            ConfigurationError: They cannot be read, or do not fit together.
        """
        self._settings = settings
        self._optional = optional
        # gRPC asks from threads of its own.
        self._lock = threading.Lock()
        self._seen = self._look()
        self._looked_at = time.monotonic()
        try:
            self._bundle = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._names}: {_why(error)}") from None

    def current(self) -> Bundle:
        """Gives the newest good bundle, the same object as long as the files stay; never raises."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= LOOK_EVERY:
                self._looked_at = now
                seen = self._look()
                if seen != self._seen:
                    self._take(seen)
            return self._bundle

    def context(self) -> ssl.SSLContext:
        """A context for a server that takes the newest bundle for each handshake."""
        context = self._bundle.context

        def newest(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current().context

        context.sni_callback = newest
        return context

    def _take(self, seen: tuple[object, ...]) -> None:
        try:
            self._bundle = self._read()
        except (OSError, ValueError) as error:
            # A pair of which only one file is written yet: the next look finds the other one changed too.
            why = _why(error)
            log.error("new certificates are no good; the old ones stay", files=self._names, why=why)  # noqa: TRY400
        else:
            log.info("certificates read again", files=self._names)
        self._seen = seen

    @property
    def _names(self) -> str:
        names = ("cert_file", "key_file", *(("client_ca_file",) if self._settings.client_ca_file else ()))
        return ", ".join(f"tls.{name}" for name in names)

    def _files(self) -> Iterator[Path]:
        for file in (self._settings.cert_file, self._settings.key_file, self._settings.client_ca_file):
            if file is not None:
                yield file

    def _look(self) -> tuple[object, ...]:
        """What tells that a file is another one: also a link that leads elsewhere, as Kubernetes changes secrets."""
        facts: list[object] = []
        for file in self._files():
            try:
                status = os.stat(file)  # noqa: PTH116 - Path.stat() is the same, only slower
            except OSError as error:
                facts.append(error.errno)
            else:
                facts.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(facts)

    def _read(self) -> Bundle:
        settings = self._settings
        if settings.cert_file is None or settings.key_file is None:
            raise ValueError("both are needed")
        before = [file.read_bytes() for file in self._files()]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # Without a function OpenSSL would ask the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_password)
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL if self._optional else ssl.CERT_REQUIRED
        if before != [file.read_bytes() for file in self._files()]:
            raise ValueError("they changed while they were read")
        return Bundle(before[0], before[1], before[2] if len(before) > 2 else None, context)  # noqa: PLR2004


def _no_password() -> NoReturn:
    raise ValueError("the key is encrypted; a server needs one that is not")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"not a certificate and its key: {error.reason or 'no PEM'}"
    if isinstance(error, OSError):
        return f"cannot read {str(error.filename)!r}: {error.strerror}"
    return str(error)


def names_of(certificate: object) -> tuple[tuple[str, str], ...]:
    """The names in a certificate as Python's ``getpeercert`` gives it: kind and text."""
    if not isinstance(certificate, dict):
        return ()
    kinds = {"URI": "uri", "DNS": "dns"}
    names = [(kinds[kind], text) for kind, text in certificate.get("subjectAltName", ()) if kind in kinds]
    for part in certificate.get("subject", ()):
        names += [("common_name", text) for kind, text in part if kind == "commonName"]
    return tuple(names)

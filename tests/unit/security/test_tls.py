"""``Certificates``: validation and reload of certificate files."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from registry_server.config import TlsSettings
from registry_server.errors import ConfigurationError
from registry_server.security.tls import CHECK_INTERVAL_SECONDS, Certificates
from tests.support.certificates import Authority
from tests.support.manual_clock import ManualClock


def corruptions(directory: Path, authority: Authority) -> Iterator[tuple[str, Path, bytes]]:
    certificate, key = authority.pair("localhost")
    yield "truncated certificate", directory / "server.crt", certificate[: len(certificate) // 2]
    yield "key of another certificate", directory / "server.key", key
    yield "empty key", directory / "server.key", b""
    yield "text", directory / "server.crt", b"no certificate\n"


def touch(file: Path, nanoseconds: int) -> None:
    os.utime(file, ns=(nanoseconds, nanoseconds))


def test_invalid_files_keep_the_bundle_and_are_logged_once(tmp_path: Path, clock: ManualClock) -> None:
    authority = Authority(tmp_path)
    files = authority.files("server")
    good = [file.read_bytes() for file in files]
    certificates = Certificates(TlsSettings(cert_file=files[0], key_file=files[1]), monotonic=clock)

    def checked() -> object:
        clock.now += CHECK_INTERVAL_SECONDS
        return certificates.current()

    bundle = certificates.current()
    ticks = itertools.count(time.time_ns() + 10**9, 10**9)
    for name, file, content in corruptions(tmp_path, authority):
        with capture_logs() as logs:
            file.write_bytes(content)
            touch(file, next(ticks))
            assert checked() is bundle, name
            assert checked() is bundle, name
        assert [line["event"] for line in logs] == ["certificate reload failed"], name
        for file_, content_ in zip(files, good, strict=True):
            file_.write_bytes(content_)
            touch(file_, next(ticks))
        assert certificates.current() is bundle, "checked within the interval"
        assert checked() is not bundle, name
        bundle = certificates.current()
        assert [bundle.certificate, bundle.key] == good
    files[0].unlink()
    assert checked() is bundle


def test_invalid_files_at_start_are_reported_with_their_settings(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.files("server")
    other = authority.files("other")[1]
    for files, problem in (
        ((certificate, tmp_path / "nowhere"), "No such file"),
        ((certificate, other), "KEY_VALUES_MISMATCH"),
        ((key, key), "not a certificate with its key"),
    ):
        with pytest.raises(ConfigurationError, match=problem) as caught:
            Certificates(TlsSettings(cert_file=files[0], key_file=files[1]))
        assert str(caught.value).startswith("tls.cert_file, tls.key_file: ")
        assert "PRIVATE" not in str(caught.value)


def test_encrypted_key_is_refused_without_a_prompt(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).files("server")
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigurationError, match="encrypted"):
        Certificates(TlsSettings(cert_file=certificate, key_file=key))

"""Certificates for tests: an authority, servers and clients."""

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


class Authority:
    """A certificate authority that issues certificates as PEM and as files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"authority {os.urandom(4).hex()}")
        self._certificate = (
            _builder(self._name, self._key, datetime.now(UTC) + _DAY)
            .issuer_name(self._name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / "ca.pem"
        self.pem = self._certificate.public_bytes(Encoding.PEM)
        self.file.write_bytes(self.pem)

    def pair(self, *names: str, common_name: str | None = None, expired: bool = False) -> tuple[bytes, bytes]:
        """Return a certificate and its key as PEM; names are IP addresses, URIs or DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        ends = datetime.now(UTC) + (-_DAY if expired else _DAY)
        certificate = (
            _builder(_name(common_name) if common_name else x509.Name([]), key, ends)
            .issuer_name(self._name)
            .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.PEM), private

    def files(self, name: str, *names: str, common_name: str | None = None) -> tuple[Path, Path]:
        """Return the paths of a new certificate and its key."""
        certificate, key = self.pair(*(names or ("localhost", "127.0.0.1")), common_name=common_name)
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[0].write_bytes(certificate)
        paths[1].write_bytes(key)
        return paths


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, ends: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - 2 * _DAY)
        .not_valid_after(ends)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Secret:
    """A directory like a Kubernetes secret volume: the files are links, updated by replacing one directory link."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._versions = 0
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"

    def put(self, certificate: bytes, key: bytes) -> None:
        """Replace both files atomically."""
        self._versions += 1
        version = self._directory / f"..v{self._versions}"
        version.mkdir()
        (version / "tls.crt").write_bytes(certificate)
        (version / "tls.key").write_bytes(key)
        link = self._directory / "..new"
        link.symlink_to(version.name)
        os.replace(link, self._directory / "..data")  # noqa: PTH105 - replaces the link instead of following it
        for path in (self.certificate, self.key):
            if not path.is_symlink():
                path.symlink_to(f"..data/{path.name}")

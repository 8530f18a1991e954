"""TLS for connections to Redis."""

import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple

from registry_server.errors import ConfigurationError


class RedisTls(NamedTuple):
    """PEM files for TLS connections to Redis."""

    ca: Path | None = None
    """Certificate authorities; ``None`` = those of the system."""
    certificate: Path | None = None
    """Client certificate, for a Redis that requires one."""
    key: Path | None = None
    """Private key of the client certificate."""

    def validate(self) -> None:
        """Validate the files at start; redis-py would report them only when it connects.

        Raises:
            ConfigurationError: A file cannot be read, or the key does not belong to the certificate.
        """
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password="")  # no prompt on the terminal
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no PEM"
            names = "redis.tls_ca_file, redis.tls_cert_file, redis.tls_key_file"
            raise ConfigurationError(f"{names}: cannot be used: {reason}") from None

    def options(self) -> dict[str, Any]:
        """Return redis-py's connection options: names are verified unless the URL's query overrides that."""
        return {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_ca_certs": None if self.ca is None else str(self.ca),
            "ssl_certfile": None if self.certificate is None else str(self.certificate),
            "ssl_keyfile": None if self.key is None else str(self.key),
        }


NO_TLS_FILES: Final = RedisTls()

"""TLS to Redis."""

import ssl
from pathlib import Path
from typing import Any, Final, NamedTuple

from registry_server.errors import ConfigurationError


class RedisTls(NamedTuple):
    """Files for a connection to Redis with TLS, as PEM."""

    ca: Path | None = None
    """Authorities; ``None``: those of the system."""
    certificate: Path | None = None
    """To show to a Redis that asks for one."""
    key: Path | None = None
    """Of that certificate."""

    def check(self) -> None:
        """Refuses files that are no good, which redis-py would only find when it connects.

        Raises:
            ConfigurationError: They cannot be read, or do not fit together.
        """
        context = ssl.create_default_context()
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key, password="")  # never asks the terminal
        except (OSError, ValueError) as error:  # also what OpenSSL says
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no PEM"
            names = "redis.tls_ca_file, redis.tls_cert_file, redis.tls_key_file"
            raise ConfigurationError(f"{names}: cannot be used: {why}") from None

    def options(self) -> dict[str, Any]:
        """What redis-py wants. Names are verified; only who says otherwise in the URL goes without."""
        return {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            "ssl_ca_certs": None if self.ca is None else str(self.ca),
            "ssl_certfile": None if self.certificate is None else str(self.certificate),
            "ssl_keyfile": None if self.key is None else str(self.key),
        }


NO_TLS_FILES: Final = RedisTls()

"""The command ``healthcheck``, for the health checks of containers."""

import http.client
import socket
import ssl
from typing import Final

import click

from registry_cli.exits import Failure

_ALL_INTERFACES: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound
_MAX_SHOWN_BYTES: Final = 1_000


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--ready", is_flag=True, help="Check whether it accepts calls, not only whether it is alive.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="Time in seconds.")
@click.argument("settings", nargs=-1, type=click.UNPROCESSED)
def command(*, ready: bool, timeout: float, settings: tuple[str, ...]) -> None:
    """Check the registry of this container; needs no credential.

    The exit code is 0 or 1. Address and TLS follow from the settings of `serve`: its environment variables, its file,
    or the same flags. The check uses no proxy and does not verify the certificate of the registry. Where every client
    needs a certificate, it ends after the TLS handshake.
    """
    from registry_server.config import load_settings  # noqa: PLC0415 - other commands must not load the server
    from registry_server.errors import ConfigurationError  # noqa: PLC0415 - as above

    try:
        loaded = load_settings(settings)
    except ConfigurationError as error:
        raise Failure(str(error)) from None
    host, port = loaded.http.host_port
    tls = loaded.tls
    handshake_only = tls.client_ca_file is not None and tls.http_client_certificates == "required"
    if ready and handshake_only:
        raise Failure("--ready needs a client certificate; set tls.http_client_certificates to optional")
    if host in _ALL_INTERFACES:
        host = "127.0.0.1"
    try:
        with _connect(host, port, timeout, tls=tls.cert_file is not None) as connection:
            if not handshake_only:
                _get(connection, host, port, "/health" if ready else "/health/live")
    except ssl.SSLError as error:
        if not (handshake_only and "alert" in str(error).lower()):  # a registry that refuses us is alive
            raise Failure(f"no TLS connection to {host}:{port}: {error.reason or error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"no answer from {host}:{port}: {getattr(error, 'strerror', None) or error}") from error


def _connect(host: str, port: int, timeout: float, *, tls: bool) -> socket.socket:
    connection = socket.create_connection((host, port), timeout)
    if not tls:
        return connection
    context = ssl.create_default_context()
    # The name in the certificate is that of the clients' address, and nothing secret is sent.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connection:
        return context.wrap_socket(connection, server_hostname=host)


def _get(connection: socket.socket, host: str, port: int, path: str) -> None:
    # Unlike urllib, http.client uses no proxy of the environment.
    client = http.client.HTTPConnection(host, port)
    client.sock = connection
    client.request("GET", path, headers={"Connection": "close"})
    response = client.getresponse()
    if response.status != http.HTTPStatus.OK:
        body = response.read(_MAX_SHOWN_BYTES).decode(errors="replace")
        raise Failure(f"GET {path} returned {response.status}: {body}")

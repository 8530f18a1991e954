"""Settings of the gRPC and HTTP transports and their TLS certificates."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from registry_server.config.addresses import (
    HostPort,
    bad_setting,
    check_host_names,
    check_listen_address,
    check_origins,
    check_tcp_address,
    split_host_port,
    split_list,
)
from registry_server.config.fields import KIB, MIB, Metavar, Milliseconds, Number, OptionalFile, SettingsGroup


class GrpcSettings(SettingsGroup):
    """gRPC."""

    address: Annotated[str, AfterValidator(check_listen_address), Metavar("ADDRESS")] = "127.0.0.1:50051"
    """Address to listen on: HOST:PORT, [IPV6]:PORT or unix:PATH; 0.0.0.0 and [::] both are all interfaces with IPv4 and
    IPv6. Port 0 selects a free port."""
    max_message_bytes: Annotated[Number, Field(ge=64 * KIB, le=64 * MIB)] = 4 * MIB
    """Maximum size of a message that the server receives, in bytes."""
    reflection: bool = True
    """Whether clients such as grpcurl may list the services and their methods."""
    keepalive_time_ms: Milliseconds = 30_000
    """Time without traffic after which the server pings a client, in milliseconds."""
    keepalive_timeout_ms: Milliseconds = 10_000
    """Maximum time to wait for the reply to a ping before the connection is closed, in milliseconds."""
    min_ping_interval_ms: Milliseconds = 5_000
    """Minimum time between two pings from a client, in milliseconds. Clients that ping more often are disconnected."""
    max_metadata_bytes: Annotated[Number, Field(ge=4 * KIB, le=MIB)] = 16 * KIB
    """Maximum size of the metadata of a call, in bytes."""
    max_concurrent_streams: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Maximum number of concurrent calls and streams on one connection. Further calls wait."""
    write_timeout_ms: Milliseconds = 30_000
    """Maximum time for a client to read one message of a watch before the watch is ended, in milliseconds."""


class HttpSettings(SettingsGroup):
    """HTTP (REST, events, health, metrics)."""

    address: Annotated[str, AfterValidator(check_tcp_address), Metavar("ADDRESS")] = "127.0.0.1:3002"
    """Address to listen on: HOST:PORT or [IPV6]:PORT; 0.0.0.0 and [::] both are all interfaces with IPv4 and IPv6. Port
    0 selects a free port."""
    cors_origins: Annotated[
        tuple[str, ...], BeforeValidator(split_list), AfterValidator(check_origins), Metavar("ORIGINS")
    ] = ()
    """Origins whose pages may call the API from a browser, separated by commas, such as https://console.example.com,
    or * for all origins."""
    allowed_hosts: Annotated[
        tuple[str, ...], BeforeValidator(split_list), AfterValidator(check_host_names), Metavar("HOSTS")
    ] = ()
    """Host names of the registry that a request may have in Host, separated by commas, such as registry.example.com, or
    * for all. IP addresses, localhost and the host of http.address are always accepted. If it is not set, Host is only
    checked where callers need no credential and http.address is a loopback address: there a browser could be used by
    any web page, and other names and addresses are rejected."""
    max_connections: Annotated[Number, Field(ge=10, le=1_000_000)] = 10_000
    """Maximum number of open connections, in each process; at most half of the files that the process may open. Once
    80 % of them are open, an address may have an equal share: beyond it a new connection replaces its oldest idle one,
    or is closed."""
    max_body_bytes: Annotated[Number, Field(ge=64 * KIB, le=64 * MIB)] = MIB
    """Maximum size of a request body, in bytes."""
    max_headers: Annotated[Number, Field(ge=16, le=1_000)] = 100
    """Maximum number of headers in a request."""
    max_header_bytes: Annotated[Number, Field(ge=KIB, le=64 * KIB)] = 16 * KIB
    """Maximum size of one header, in bytes."""
    header_timeout_ms: Milliseconds = 10_000
    """Maximum time for a client to send the headers of a request, in milliseconds. On a new connection it includes the
    time to the first byte, and the TLS handshake has the same limit."""
    write_timeout_ms: Milliseconds = 30_000
    """Maximum time for a client to read 64 KiB of a response before it is disconnected, in milliseconds."""
    events_keep_alive_ms: Annotated[Number, Field(ge=100, le=60 * 60 * 1000)] = 15_000
    """Time without events after which a comment is sent on an event stream, in milliseconds."""

    @property
    def host_port(self) -> HostPort:
        """Host and port of the address."""
        parts = split_host_port(self.address)
        if parts is None:
            raise ValueError("the address was not validated")
        return parts


class TlsSettings(SettingsGroup):
    """TLS of gRPC and HTTP."""

    cert_file: OptionalFile = None
    """Certificate chain of the server, as PEM. Reloaded when it changes."""
    key_file: OptionalFile = None
    """Private key of the certificate, as unencrypted PEM. Reloaded when it changes."""
    client_ca_file: OptionalFile = None
    """CA certificates for client certificates, as PEM. If set, clients must present a certificate (mTLS)."""
    http_client_certificates: Literal["required", "optional"] = "required"
    """Whether HTTP clients must present a certificate when tls.client_ca_file is set. "optional" admits clients without
    one, such as the platform's health checks."""

    @field_validator("client_ca_file")
    @classmethod
    def _check_client_ca(cls, client_ca: Path | None, info: ValidationInfo) -> Path | None:
        if client_ca is not None and info.data.get("cert_file") is None:
            raise bad_setting("needs {other}", other="tls.cert_file")
        return client_ca

    @field_validator("key_file")
    @classmethod
    def _check_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("cert_file") is None):
            raise bad_setting("must be given together with {other}", other="tls.cert_file")
        return key

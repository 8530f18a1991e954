"""TLS of the gRPC server: each new connection uses the newest certificates."""

import grpc

from registry_server.security.tls import Bundle, Certificates


def server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials that load the newest bundle before each handshake; gRPC requires TLS 1.2 or newer."""
    used = certificates.current()

    def newest() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        bundle = certificates.current()
        if bundle is used:
            return None
        used = bundle
        return _configuration(bundle)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        newest,  # type: ignore[arg-type]  # None means "no change": documented, but missing from the type
        require_client_authentication=used.client_ca is not None,
    )


def _configuration(bundle: Bundle) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(bundle.key, bundle.certificate)], bundle.client_ca)

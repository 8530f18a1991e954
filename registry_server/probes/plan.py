"""``Plan``: how a service is probed, derived from its settings and the defaults."""

from typing import TYPE_CHECKING, Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.service_pb2 import HealthCheck, Service
from registry_server.model.endpoints import UNPROBED, ProbeKind, probe_kind

if TYPE_CHECKING:  # see process.py
    from registry_server.config import HealthCheckSettings

DEFAULT_PATH: Final = "/health"
DEFAULT_METHOD: Final = "GET"

_TLS_SCHEMES: Final = frozenset({"https", "grpcs", "wss"})
_PORT, _TLS_PORT = 80, 443


class Plan(NamedTuple):
    """How a service is probed. Equal plans result in identical probes."""

    kind: ProbeKind
    interval: float
    """Seconds between two probes."""
    timeout: float
    """Time limit of a probe in seconds; at most the interval."""
    failure_threshold: int
    success_threshold: int
    degraded_after: float | None
    """Seconds after which a success counts as degraded; ``None`` = never."""
    host: str = ""
    """DNS name or IP address, without brackets. Empty if the endpoint is not valid or there is no probe."""
    port: int = 0
    tls: bool = False
    """Whether the endpoint uses TLS."""
    authority: str = ""
    """``host`` or ``host:port`` as in the endpoint."""
    url: str = ""
    """HTTP: requested URL."""
    method: str = DEFAULT_METHOD
    """HTTP: request method."""
    headers: tuple[tuple[str, str], ...] = ()
    """HTTP: additional request headers, ordered by name."""
    expected_statuses: frozenset[int] = frozenset()
    """HTTP: status codes of a success; empty = any 2xx."""
    grpc_service: str = ""
    """gRPC: service to check; empty = the whole server."""
    owner: str = ""
    """Owner of the service, whose probes and look-ups share one part of the slots; empty = services without owner."""

    @property
    def probed(self) -> bool:
        """Whether the service has a probe; otherwise heartbeats or reports determine its health."""
        return self.kind not in UNPROBED

    def expects(self, status: int) -> bool:
        """Return whether an HTTP status code means success."""
        return status in self.expected_statuses if self.expected_statuses else 200 <= status < 300  # noqa: PLR2004

    @classmethod
    def of(cls, service: Service, defaults: "HealthCheckSettings", owner: str = "") -> Self:
        """Return the plan of a service.

        Never raises: an invalid endpoint results in a plan without a host, whose probes fail.

        Args:
            service: The registered service.
            defaults: Values for settings that the service does not specify.
            owner: Owner of the service.
        """
        check = service.health_check
        endpoint = _split(service.endpoint)
        interval = _seconds(check.interval) if check.HasField("interval") else defaults.interval_ms / 1000
        timeout = _seconds(check.timeout) if check.HasField("timeout") else defaults.timeout_ms / 1000
        common = cls(
            kind=probe_kind(service),
            interval=interval,
            timeout=min(timeout, interval),
            failure_threshold=check.failure_threshold or defaults.failure_threshold,
            success_threshold=check.success_threshold or defaults.success_threshold,
            degraded_after=_seconds(check.degraded_after) if check.HasField("degraded_after") else None,
            owner=owner,
        )
        return common._at(endpoint, check) if common.probed else common

    def _at(self, endpoint: SplitResult, check: HealthCheck) -> Self:
        tls = endpoint.scheme in _TLS_SCHEMES
        located = self._replace(
            host=endpoint.hostname or "",
            port=endpoint.port or (_TLS_PORT if tls else _PORT),
            tls=tls,
            authority=endpoint.netloc,
        )
        if located.kind == "grpc":
            return located._replace(grpc_service=check.grpc.service)
        if located.kind == "http":
            return located._replace(
                url=_url(endpoint, check.http.path or DEFAULT_PATH, tls=tls),
                method=check.http.method or DEFAULT_METHOD,
                headers=tuple(sorted(check.http.headers.items())),
                expected_statuses=frozenset(check.http.expected_statuses),
            )
        return located


def _split(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port, parts.hostname  # parsed, and thus validated, on access
    except ValueError:
        return SplitResult("", "", "", "", "")
    return parts


def _url(endpoint: SplitResult, path: str, *, tls: bool) -> str:
    """Return the URL of a path below the endpoint's own path, without the endpoint's query and fragment."""
    return f"{'https' if tls else 'http'}://{endpoint.netloc}{endpoint.path.rstrip('/')}{path}"


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1_000_000_000

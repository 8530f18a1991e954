"""``Transport``: what the composition root and the metrics need of a server of one protocol."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from registry_server.instrumentation.counters import TransportCounters


class Transport(Protocol):
    """A server of one protocol."""

    counters: "TransportCounters"
    """Counters for the metrics."""

    async def start(self) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            ConfigurationError: Listening on the address failed.
        """

    async def begin_drain(self) -> None:
        """Notify clients and load balancers of the shutdown; calls in flight continue."""

    async def drain(self) -> None:
        """Let calls in flight finish within the grace period, end the others, and close the server."""

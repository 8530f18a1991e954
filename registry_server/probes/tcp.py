"""The TCP probe: connects and closes."""

import asyncio
import socket
from collections.abc import Sequence

from registry_server.probes.outcome import Answer, ProbeFailed, connection_error
from registry_server.security.egress import ResolvedAddress


async def send_tcp_probe(addresses: Sequence[ResolvedAddress], deadline: float) -> Answer:
    """Connect to the first address of the endpoint that accepts a connection; see ``Prober``."""
    now = asyncio.get_running_loop().time
    failure = OSError()
    for remaining in range(len(addresses), 0, -1):
        # Each address gets a share of the remaining time, so that a silent one does not prevent the next attempt.
        try:
            await _connect(addresses[-remaining], now() + (deadline - now()) / remaining)
        except OSError as error:
            failure = error
        else:
            return Answer()
    if isinstance(failure, TimeoutError) and failure.errno is None:  # our timeout, not the kernel's
        raise failure
    raise ProbeFailed(connection_error(failure)) from failure


async def _connect(address: ResolvedAddress, deadline: float) -> None:
    with socket.socket(address.family, socket.SOCK_STREAM) as connection:
        connection.settimeout(0)
        async with asyncio.timeout_at(deadline):
            await asyncio.get_running_loop().sock_connect(connection, (address.address, address.port))

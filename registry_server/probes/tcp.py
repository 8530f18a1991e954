"""The TCP probe: connects and closes."""

import asyncio
import socket

from registry_server.probes.outcome import Answer, ProbeFailed, connection_error
from registry_server.probes.plan import Plan
from registry_server.security.egress import EgressPolicy, ResolvedAddress


async def probe_tcp(plan: Plan, policy: EgressPolicy, deadline: float) -> Answer:
    """Connects to the first address of the endpoint that takes the connection.

    Args:
        plan: What to connect to.
        policy: Which addresses may be connected to.
        deadline: Time of the event loop at which to give up.

    Raises:
        EndpointRefused, ResolutionFailed, ProbeFailed: No connection came about.
        TimeoutError: No address answered in time.
    """
    async with asyncio.timeout_at(deadline):
        addresses = await policy.resolve(plan.host, plan.port)
    now = asyncio.get_running_loop().time
    failure = OSError()
    for left in range(len(addresses), 0, -1):
        # Each gets its share of the time: one that does not answer must not hide the next.
        try:
            await _connect(addresses[-left], now() + (deadline - now()) / left)
        except OSError as error:
            failure = error
        else:
            return Answer()
    if isinstance(failure, TimeoutError) and failure.errno is None:  # ours, not the kernel's
        raise failure
    raise ProbeFailed(connection_error(failure)) from failure


async def _connect(address: ResolvedAddress, deadline: float) -> None:
    with socket.socket(address.family, socket.SOCK_STREAM) as connection:
        connection.settimeout(0)
        async with asyncio.timeout_at(deadline):
            await asyncio.get_running_loop().sock_connect(connection, (address.address, address.port))

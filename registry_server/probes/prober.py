"""``Prober``: sends probes of every kind."""

import asyncio
import time
from collections.abc import Sequence
from typing import Self

import structlog

from registry_server.probes.grpc import GrpcProber, system_authorities
from registry_server.probes.http import HttpProber
from registry_server.probes.outcome import (
    INTERNAL_FAILURE,
    NO_FREE_SLOT,
    REGISTRY_FAILURES,
    Answer,
    Outcome,
    OutcomeKind,
    ProbeFailed,
    format_seconds,
)
from registry_server.probes.plan import Plan
from registry_server.probes.tcp import send_tcp_probe
from registry_server.security.egress import EgressPolicy, EndpointRefused, Resolution, ResolutionFailed, ResolvedAddress
from registry_server.security.lookups import LookupNotStarted

log = structlog.get_logger(__name__)


class Prober:
    """Sends any number of concurrent probes while it is entered as a context manager."""

    def __init__(self, policy: EgressPolicy, *, authorities: bytes | None = None) -> None:
        """Create a prober.

        Args:
            policy: Addresses that probes may connect to; closed on exit.
            authorities: Trusted certificate authorities, as PEM; ``None`` = those of the system.
        """
        self._policy = policy
        self._authorities = authorities

    async def __aenter__(self) -> Self:
        """Create the resources that all probes share."""
        authorities = self._authorities
        self._grpc = GrpcProber(authorities or await asyncio.to_thread(system_authorities))
        self._http = HttpProber(self._policy, None if authorities is None else authorities.decode())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release the shared resources; probes in flight fail."""
        await self._http.close()
        self._policy.close()

    async def send_probe(self, plan: Plan) -> Outcome:
        """Probe a service once within ``plan.timeout`` seconds; raise nothing but ``CancelledError``.

        Time in which a look-up waits for a free thread does not count.
        """
        started = time.monotonic()  # uvloop's clock has a resolution of milliseconds
        answer, error, details = None, "", None
        try:
            addresses, waited = await self._resolve(plan)
            started += waited
            deadline = asyncio.get_running_loop().time() + plan.timeout - (time.monotonic() - started)
            answer = await self._dispatch(plan, addresses, deadline)
        except LookupNotStarted:
            error = NO_FREE_SLOT
        except TimeoutError:
            error = f"no answer within {format_seconds(plan.timeout)}"
        except (EndpointRefused, ResolutionFailed) as refused:
            error = str(refused)
        except ProbeFailed as failure:
            error, details = failure.text, failure.details
        except Exception:
            # A bug must cost one probe, not all of them.
            log.exception("probe failed unexpectedly", kind=plan.kind)
            error = INTERNAL_FAILURE
        elapsed = time.monotonic() - started
        if answer is None:
            kind = OutcomeKind.INCONCLUSIVE if error in REGISTRY_FAILURES else OutcomeKind.FAILED
            return Outcome(kind, elapsed, error, details)
        degraded = answer.degraded
        if not degraded and plan.degraded_after is not None and elapsed > plan.degraded_after:
            degraded = f"slower than {format_seconds(plan.degraded_after)}"
        return Outcome(OutcomeKind.DEGRADED if degraded else OutcomeKind.OK, elapsed, degraded, answer.details)

    async def _resolve(self, plan: Plan) -> Resolution:
        """Return the addresses of the endpoint; raise what ``EgressPolicy.resolve`` raises."""
        if not plan.host:
            raise ProbeFailed("the endpoint is not a URL with a host")
        denial = self._policy.literal_denial_reason(plan.host)
        if denial is not None:
            raise EndpointRefused(denial)
        return await self._policy.resolve(plan.host, plan.port, plan.owner, plan.timeout)

    async def _dispatch(self, plan: Plan, addresses: Sequence[ResolvedAddress], deadline: float) -> Answer:
        """Send a probe of the plan's kind until the deadline, in event loop time.

        Raises:
            EndpointRefused, ProbeFailed: The service could not be reached, or it failed the probe.
            TimeoutError: The service did not answer in time.
        """
        match plan.kind:
            case "http":
                return await self._http.send_http_probe(plan, addresses, deadline)
            case "grpc":
                return await self._grpc.send_grpc_probe(plan, addresses, deadline)
            case "tcp":
                return await send_tcp_probe(addresses, deadline)
            case _:
                raise ValueError(f"{plan.kind} has no probe")

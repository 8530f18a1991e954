"""``Prober``: makes probes of every kind."""

import asyncio
import time
from types import TracebackType
from typing import Self

import structlog

from registry_server.probes.grpc import GrpcProber, system_authorities
from registry_server.probes.http import HttpProber
from registry_server.probes.outcome import BROKEN, OURS, Answer, Outcome, OutcomeKind, ProbeFailed, span
from registry_server.probes.plan import Plan
from registry_server.probes.tcp import probe_tcp
from registry_server.security.egress import EgressPolicy, EndpointRefused, ResolutionFailed

log = structlog.get_logger(__name__)


class Prober:
    """Makes probes; any number at once.

    To be started before the first probe and closed after the last, or used as a context manager.
    """

    def __init__(self, policy: EgressPolicy, *, authorities: bytes | None = None) -> None:
        """Prepares a prober.

        Args:
            policy: Which addresses may be connected to.
            authorities: Certificates of the authorities to trust, as PEM; None = those of the system.
        """
        self._policy = policy
        self._authorities = authorities
        self._http: HttpProber | None = None
        self._grpc: GrpcProber | None = None

    async def start(self) -> None:
        """Makes ready what all probes share."""
        authorities = self._authorities
        self._http = HttpProber(self._policy, None if authorities is None else authorities.decode())
        self._grpc = GrpcProber(self._policy, authorities or await asyncio.to_thread(system_authorities))

    async def close(self) -> None:
        """Frees it; probes under way fail."""
        if self._http is not None:
            await self._http.close()
        self._policy.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def probe(self, plan: Plan) -> Outcome:
        """Probes a service once; takes at most ``plan.timeout`` seconds and raises nothing but ``CancelledError``."""
        deadline = asyncio.get_running_loop().time() + plan.timeout
        started = time.monotonic()  # the clock of uvloop has milliseconds only
        answer, error, details = None, "", None
        try:
            answer = await self._ask(plan, deadline)
        except TimeoutError:
            error = f"no answer within {span(plan.timeout)}"
        except (EndpointRefused, ResolutionFailed) as refusal:
            error = str(refusal)
        except ProbeFailed as failure:
            error, details = failure.text, failure.details
        except Exception:
            # Ours to mend; it must cost one probe, not all of them.
            log.exception("probe broke", kind=plan.kind)
            error = BROKEN
        took = time.monotonic() - started
        if answer is None:
            kind = OutcomeKind.INCONCLUSIVE if error in OURS else OutcomeKind.FAILED
            return Outcome(kind, took, error, details)
        degraded = answer.degraded
        if not degraded and plan.degraded_after is not None and took > plan.degraded_after:
            degraded = f"slower than {span(plan.degraded_after)}"
        return Outcome(OutcomeKind.DEGRADED if degraded else OutcomeKind.OK, took, degraded, answer.details)

    async def _ask(self, plan: Plan, deadline: float) -> Answer:
        if self._http is None or self._grpc is None:
            raise RuntimeError("the prober is not started")
        if not plan.host:
            raise ProbeFailed("the endpoint is not a URL with a host")
        refusal = self._policy.refuses_literal(plan.host)
        if refusal is not None:
            raise EndpointRefused(refusal)
        match plan.kind:
            case "http":
                return await self._http.probe(plan, deadline)
            case "grpc":
                return await self._grpc.probe(plan, deadline)
            case "tcp":
                return await probe_tcp(plan, self._policy, deadline)
            case _:
                raise ValueError(f"{plan.kind} is not probed")

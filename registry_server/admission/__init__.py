"""What surrounds every call of every transport: admission, limits, tracing, errors, metrics and the request log."""

from registry_server.admission.outcomes import OUTCOMES, Outcome, disclosed, outcome_of
from registry_server.admission.scope import Admission, CallScope, Endpoint
from registry_server.admission.transport import Transport

__all__ = [
    "OUTCOMES",
    "Admission",
    "CallScope",
    "Endpoint",
    "Outcome",
    "Transport",
    "disclosed",
    "outcome_of",
]

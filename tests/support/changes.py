"""Changes for tests."""

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.change import Change
from registry_server.model.record import Record


def change(revision: int, before: Record | None, after: Record | None, error: str = "") -> Change:
    """Return an update of a service by a client."""
    return Change(
        revision=revision,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=before,
        after=after,
        error=error,
    )

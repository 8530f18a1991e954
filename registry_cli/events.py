"""Presentation of events in ``watch``."""

from datetime import UTC
from typing import Any, Final

from ossa_common.event_names import EVENT_NAMES
from ossa_common.json_shape import enum_word
from ossa_common.json_writer import message_document, time_text
from registry_cli.output import Cell
from registry_cli.services import health_cell, status_text
from registry_client import Event, EventReason, EventType

EVENT_TYPES: Final = {
    name.removeprefix("service:").replace("registry:", "").replace(":", "-"): number
    for number, name in EVENT_NAMES.items()
    if number != EventType.EVENT_TYPE_SERVICE_SNAPSHOT
}
"""Event types by the values of ``--type``."""

COLUMNS: Final = (("TIME", 8), ("EVENT", 14), ("NAME", 24), ("HEALTH", 11), ("REASON", 14), ("DETAILS", 0))
"""Headers and widths. The widths are fixed, because later rows are unknown when the first one is printed."""
_TYPE_TEXTS: Final = {number: text for text, number in EVENT_TYPES.items()} | {
    EventType.EVENT_TYPE_SERVICE_SNAPSHOT: "snapshot"
}
_COLORS: Final = {
    EventType.EVENT_TYPE_SERVICE_REGISTERED: "green",
    EventType.EVENT_TYPE_SERVICE_UNREGISTERED: "red",
    EventType.EVENT_TYPE_REGISTRY_ERROR: "red",
}


def event_document(event: Event, cursor: str) -> dict[str, Any]:
    """Return the JSON of an event: the data that the REST API sends, with its event name and cursor."""
    fields: dict[str, Any] = {"event": EVENT_NAMES.get(event.type, "unknown")}
    if event.HasField("service"):
        fields["service"] = message_document(event.service)
    fields |= {"revision": event.revision, "occurredAt": time_text(event.occurred_at)}
    if event.reason:
        fields["reason"] = enum_word(EventReason.DESCRIPTOR, event.reason)
    if event.previous_health:
        fields["previousHealth"] = status_text(event.previous_health)
    if event.error:
        fields["error"] = {"code": "REGISTRY_ERROR", "message": event.error, "details": {}}
    return fields | ({"cursor": cursor} if cursor else {})


def event_cells(event: Event, *, with_date: bool = False) -> list[str | Cell]:
    """Return the cells of an event for ``COLUMNS``; the time is in the local time zone."""
    moment = event.occurred_at.ToDatetime(UTC).astimezone()
    has_service = event.HasField("service")
    return [
        f"{moment:%Y-%m-%d %H:%M:%S}" if with_date else f"{moment:%H:%M:%S}",
        Cell(_TYPE_TEXTS.get(event.type, "unknown"), _COLORS.get(event.type)),
        event.service.name,
        health_cell(event.service.health) if has_service else "",
        enum_word(EventReason.DESCRIPTOR, event.reason).replace("_", " ") if event.reason else "",
        _details(event),
    ]


def _details(event: Event) -> str:
    if event.error:
        return event.error
    if event.type == EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED:
        before = f"was {status_text(event.previous_health)}"
        return f"{before}: {event.service.health.error}" if event.service.health.error else before
    return event.service.endpoint

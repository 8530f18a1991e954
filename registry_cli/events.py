"""Events as ``watch`` shows them."""

from datetime import UTC
from typing import Any, Final

from registry_cli.documents import document, time_text, word
from registry_cli.output import Cell
from registry_cli.services import health_cell, status_word
from registry_client import Event, EventReason, EventType

NAMES: Final = {
    EventType.EVENT_TYPE_SERVICE_REGISTERED: "service:registered",
    EventType.EVENT_TYPE_SERVICE_UPDATED: "service:updated",
    EventType.EVENT_TYPE_SERVICE_UNREGISTERED: "service:unregistered",
    EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED: "service:health:changed",
    EventType.EVENT_TYPE_REGISTRY_ERROR: "registry:error",
    EventType.EVENT_TYPE_SERVICE_SNAPSHOT: "service:snapshot",
    EventType.EVENT_TYPE_SERVICE_UNMATCHED: "service:unmatched",
}
"""Names of events, those of the REST API."""
TYPES: Final = {
    name.removeprefix("service:").replace("registry:", "").replace(":", "-"): number
    for number, name in NAMES.items()
    if number != EventType.EVENT_TYPE_SERVICE_SNAPSHOT
}
"""What ``--type`` takes."""

HEADERS: Final = (("TIME", 8), ("EVENT", 14), ("NAME", 24), ("HEALTH", 11), ("REASON", 14), ("DETAILS", 0))
"""Columns and their widths: the names that will come are not known when the first line is printed."""
_WORDS: Final = {number: word for word, number in TYPES.items()} | {EventType.EVENT_TYPE_SERVICE_SNAPSHOT: "snapshot"}
_COLORS: Final = {
    EventType.EVENT_TYPE_SERVICE_REGISTERED: "green",
    EventType.EVENT_TYPE_SERVICE_UNREGISTERED: "red",
    EventType.EVENT_TYPE_REGISTRY_ERROR: "red",
}


def event_document(event: Event, cursor: str) -> dict[str, Any]:
    """The JSON shape of an event: the data that the REST API sends, with its name and cursor."""
    shown: dict[str, Any] = {"event": NAMES.get(event.type, "unknown")}
    if event.HasField("service"):
        shown["service"] = document(event.service)
    shown |= {"revision": event.revision, "occurredAt": time_text(event.occurred_at)}
    if event.reason:
        shown["reason"] = word(EventReason.DESCRIPTOR, event.reason)
    if event.previous_health:
        shown["previousHealth"] = status_word(event.previous_health)
    if event.error:
        shown["error"] = {"code": "REGISTRY_ERROR", "message": event.error, "details": {}}
    return shown | ({"cursor": cursor} if cursor else {})


def event_cells(event: Event) -> list[str | Cell]:
    """The cells of an event below ``HEADERS``, its time in the zone of whoever looks."""
    moment = event.occurred_at.ToDatetime(UTC).astimezone()
    known = event.HasField("service")
    return [
        f"{moment:%H:%M:%S}",
        Cell(_WORDS.get(event.type, "unknown"), _COLORS.get(event.type)),
        event.service.name,
        health_cell(event.service.health) if known else "",
        word(EventReason.DESCRIPTOR, event.reason).replace("_", " ") if event.reason else "",
        _details(event),
    ]


def _details(event: Event) -> str:
    if event.error:
        return event.error
    if event.type == EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED:
        before = f"was {status_word(event.previous_health)}"
        return f"{before}: {event.service.health.error}" if event.service.health.error else before
    return event.service.endpoint

"""``summarise``: the explanation of a filter as one sentence that a person can act on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ossa.registry.v1.event_pb2 import Event, EventReason
from ossa.registry.v1.registry_service_pb2 import ExplainDiscoveryResponse
from ossa_common.json_writer import time_text
from ossa_common.violations import quoted
from registry_server.model.conditions import Condition
from registry_server.model.filters import Filter

_MAX_PHRASES: Final = 3

REMOVAL_CAUSES: Final = {
    EventReason.EVENT_REASON_CLIENT_REQUEST: "it was unregistered",
    EventReason.EVENT_REASON_LEASE_EXPIRED: "its lease expired",
    EventReason.EVENT_REASON_CLEANUP: "its lease expired",
    EventReason.EVENT_REASON_RESYNC: "it was missing in the store",
}


@dataclass(slots=True)
class Finding:
    """A condition of a filter, evaluated on its own."""

    condition: Condition
    part: Filter
    count: int
    """Services that meet it."""
    nearest: list[str] = field(default_factory=list)
    alike: bool = False
    """Whether ``nearest`` resembles the wanted value, rather than lists what there is."""


class Relaxation(NamedTuple):
    """What a filter matches without one of its conditions."""

    condition: Condition
    matching: int
    """Services that then match."""
    actual: Sequence[tuple[str, str]]
    """Names of some of these services, with their value for the condition."""


def summarise(
    response: ExplainDiscoveryResponse,
    name: str,
    findings: Sequence[Finding],
    relaxation: Relaxation | None,
    registered: int,
    *,
    departed: Event | None,
    restricted: str,
) -> str:
    """Return the sentence for a response.

    Args:
        response: The other fields of the response.
        name: The service that the caller expects; empty if there is none.
        findings: The conditions of the filter.
        relaxation: The condition that is the cause, if a single one is.
        registered: Number of services that the caller sees.
        departed: The removal of the last service that matched, if it is known.
        restricted: The name of the caller, if it sees only a part of the services; else empty.
    """
    text = (
        _about_service(response, name, findings) if name else _about_filter(response, findings, relaxation, registered)
    )
    if response.found if name else response.total_size:
        return text
    if departed is not None:
        text += f" The last match was {departed.service.name}: {removal_text(departed)}."
    if restricted:
        text += f" The policy hides some services from {quoted(restricted)}; another credential may see more."
    return text


def _about_filter(
    response: ExplainDiscoveryResponse, findings: Sequence[Finding], relaxation: Relaxation | None, registered: int
) -> str:
    if response.total_size:
        return f"{_matches(response.total_size)}."
    if not registered:
        return "No service is registered."
    unmet = [each for each in findings if not each.count]
    if unmet:
        # Without the capability, its version adds nothing.
        if any(each.condition.field == "capability" for each in unmet):
            unmet = [each for each in unmet if each.condition.field != "capability_version"]
        text = "No service " + ", and none ".join(_unmet_phrase(each) for each in unmet[:_MAX_PHRASES])
        if relaxation is None or unmet[0].nearest:
            return text + "."
        names = _names_with_values(relaxation)
        if relaxation.condition.field != "available":
            names = [name for name, _ in relaxation.actual]
        return f"{text}; without that condition, {_matching_phrase(names, relaxation.matching)}."
    text = f"No service meets all {len(findings)} conditions at once"
    return f"{text}; {_relaxed_phrase(relaxation)}." if relaxation else f"{text}, though each is met by some."


def removal_text(event: Event) -> str:
    """Return why and when a service was removed."""
    cause = REMOVAL_CAUSES.get(event.reason, "it was removed")
    return f"{cause} at {time_text(event.occurred_at)}"


def _about_service(response: ExplainDiscoveryResponse, name: str, findings: Sequence[Finding]) -> str:
    if not response.found:
        text = f"{name} is not registered"
        if response.HasField("last_event"):
            text += f": {removal_text(response.last_event)}"
        if response.similar_names:
            text += f"; did you mean {_alternatives(response.similar_names)}?"
            return text
        return text + "."
    if response.matches:
        return f"{name} matches." if findings else f"{name} is registered."
    failed = [
        f"{_condition_text(each.field, each.wanted)} is wanted, it has {each.actual or 'none'}"
        for each in response.conditions
        if not each.holds
    ]
    return f"{name} does not match: {'; '.join(failed[:_MAX_PHRASES])}."


def _unmet_phrase(finding: Finding) -> str:
    condition, wanted = finding.condition, quoted(finding.condition.wanted)
    match condition.field:
        case "name_pattern":
            phrase = f"has a name that matches {wanted}"
        case "capability_version":
            phrase = f"offers {quoted(condition.part.capability)} in version {wanted}"
        case "available":
            return "is available (healthy and not draining)"
        case "health":
            phrase = f"is {condition.wanted}"
        case _:
            phrase = f"has {_condition_text(condition.field, condition.wanted)}"
    if not finding.nearest:
        return phrase
    if finding.alike:
        return f"{phrase} (did you mean {_alternatives(finding.nearest)}?)"
    return f"{phrase} ({'offered' if condition.of_versions else 'there are'}: {', '.join(finding.nearest)})"


def _relaxed_phrase(relaxation: Relaxation) -> str:
    condition = relaxation.condition
    without = _condition_text(condition.field, condition.wanted)
    names = _names_with_values(relaxation)
    if condition.field != "available":
        return f"without {without}, {_matching_phrase(names, relaxation.matching)}"
    one = relaxation.matching == 1
    subject = "1 service meets the others but is" if one else f"{relaxation.matching} services meet the others but are"
    return f"{subject} not {without}: {_listed(names, relaxation.matching)}"


def _names_with_values(relaxation: Relaxation) -> list[str]:
    return [f"{name} ({actual or 'none'})" for name, actual in relaxation.actual]


def _matching_phrase(names: Sequence[str], count: int) -> str:
    return f"{_matches(count)}: {_listed(names, count)}"


def _listed(names: Sequence[str], count: int) -> str:
    return ", ".join([*names, *([f"{count - len(names)} more"] if count > len(names) else [])])


def _condition_text(field_path: str, wanted: str) -> str:
    if field_path == "available":
        return "available (healthy and not draining)"
    return f"{field_path.partition('[')[0] if field_path.startswith('tags[') else field_path} {quoted(wanted)}"


def _matches(count: int) -> str:
    return "1 service matches" if count == 1 else f"{count} services match"


def _alternatives(values: Sequence[str]) -> str:
    return " or ".join(values)

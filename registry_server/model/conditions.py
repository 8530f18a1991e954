"""The conditions of a filter, each as a filter of its own, so that they can be explained one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter, TagMatch
from ossa_common.json_shape import STATUS_WORDS, enum_word
from ossa_common.violations import keyed
from registry_server.model.record import (
    Record,
    capability_term,
    capability_version_term,
    environment_term,
    group_term,
    label_term,
    tag_term,
    version_term,
)

_MAX_ACTUAL: Final = 8
"""Values of a service that are listed."""
_HEALTH_PREFIX: Final = "h:"
_TEXTS: Final = {
    "name_pattern": "",
    "capability": capability_term(""),
    "version": version_term(""),
    "environment": environment_term(""),
    "group": group_term(""),
}
"""The prefix of the terms of each text field."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a filter."""

    field: str
    """Path of the field in ``ServiceFilter``."""
    wanted: str
    """Required value, as text."""
    part: ServiceFilter
    """The filter that has only this condition."""
    prefix: str = ""
    """What index terms with values of this field begin with; empty if none has."""

    @property
    def of_versions(self) -> bool:
        """Whether the value is a version or a range."""
        return self.field in ("capability_version", "version")

    def actual(self, record: Record) -> str:
        """Return the value of a service, as text; empty if it has none."""
        match self.field:
            case "name_pattern":
                return record.name
            case "available":
                return status_word(str(record.status)) + (", draining" if record.draining else "")
        values = [term[len(self.prefix) :] for term in record.terms if term.startswith(self.prefix)]
        if self.field == "health":
            values = [status_word(value) for value in values]
        rest = [f"and {len(values) - _MAX_ACTUAL} more"] if len(values) > _MAX_ACTUAL else []
        return ", ".join([*filter(None, values[:_MAX_ACTUAL]), *rest])


def split_filter(message: ServiceFilter) -> list[Condition]:
    """Return the conditions of a valid filter, in the order of its fields."""
    found: list[Condition] = []
    for field, prefix in _TEXTS.items():
        if value := getattr(message, field):
            found.append(Condition(field, value, ServiceFilter(**{field: value}), prefix))
        if field == "capability":
            found += _capability_version(message) + _health(message) + _tags(message)
    for key, value in sorted(message.labels.items()):
        part = ServiceFilter(labels={key: value})
        found.append(Condition(keyed("labels", key), value, part, label_term(key, "")))
    if message.available:
        found.append(Condition("available", "true", ServiceFilter(available=True)))
    return found


def joined(conditions: Sequence[Condition]) -> ServiceFilter:
    """Return the filter with these conditions."""
    filter_ = ServiceFilter()
    for condition in conditions:
        filter_.MergeFrom(condition.part)
    return filter_


def status_word(number: str) -> str:
    """Return the word for the number of a ``HealthStatus``."""
    return enum_word(HealthStatus.DESCRIPTOR, int(number))


def _capability_version(message: ServiceFilter) -> list[Condition]:
    capability, version = message.capability, message.capability_version
    part = ServiceFilter(capability=capability, capability_version=version)
    prefix = capability_version_term(capability, "")
    return [Condition("capability_version", version, part, prefix)] if version else []


def _health(message: ServiceFilter) -> list[Condition]:
    words = [STATUS_WORDS[status] for status in dict.fromkeys(message.health)]
    part = ServiceFilter(health=message.health)
    return [Condition("health", " or ".join(words), part, _HEALTH_PREFIX)] if words else []


def _tags(message: ServiceFilter) -> list[Condition]:
    tags, match, prefix = message.tags, message.tag_match, tag_term("")
    if match == TagMatch.TAG_MATCH_ALL:
        parts = [ServiceFilter(tags=[tag], tag_match=match) for tag in tags]
        return [Condition(f"tags[{i}]", part.tags[0], part, prefix) for i, part in enumerate(parts)]
    return [Condition("tags", " or ".join(tags), ServiceFilter(tags=tags, tag_match=match), prefix)] if tags else []

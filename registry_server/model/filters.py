"""Filters: compiled once for each distinct filter, matched against many records."""

import re2

from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter, TagMatch
from registry_server.errors import Violation
from registry_server.model import record as terms_of
from registry_server.model.record import Record
from registry_server.model.rules import check_length, keyed
from registry_server.model.validation import LABEL_KEY
from registry_server.model.versions import VersionFilter, parse_version_filter

MAX_PATTERN_LENGTH = 512
MAX_VALUE_LENGTH = 128
MAX_LABEL_VALUE_LENGTH = 256
MAX_TAGS = 64
MAX_LABELS = 64
MAX_HEALTH = 8

# RE2 matches in time linear in the name and refuses what it could only do by backtracking; the memory bound refuses
# patterns that compile to something huge, such as nested counted repetitions.
_RE2_OPTIONS = re2.Options()
_RE2_OPTIONS.case_sensitive = False
_RE2_OPTIONS.never_capture = True
_RE2_OPTIONS.log_errors = False
_RE2_OPTIONS.max_mem = 1 << 20


class Filter:
    """A ``ServiceFilter``, ready to match. Equal filters have equal ``key``."""

    __slots__ = ("_capability", "_capability_version", "_pattern", "_version", "any_of", "key", "required")

    key: bytes
    """Canonical form: the same for filters that mean the same."""
    required: tuple[str, ...]
    """Index terms that a record must all have."""
    any_of: tuple[tuple[str, ...], ...]
    """Groups of index terms; of each group a record must have one."""

    def __init__(
        self,
        *,
        key: bytes,
        required: tuple[str, ...],
        any_of: tuple[tuple[str, ...], ...],
        pattern: "re2._Regexp[str] | None",
        version: VersionFilter | None,
        capability: str,
        capability_version: VersionFilter | None,
    ) -> None:
        self.key = key
        self.required = required
        self.any_of = any_of
        self._pattern = pattern
        self._version = version
        self._capability = capability
        self._capability_version = capability_version

    @property
    def by_terms_alone(self) -> bool:
        """Whether ``required`` and ``any_of`` say all that the filter asks for."""
        return self._pattern is None and self._version is None and self._capability_version is None

    def matches(self, record: Record) -> bool:
        """Whether the record passes; about 1 µs."""
        terms = record.terms
        for term in self.required:
            if term not in terms:
                return False
        for group in self.any_of:
            for term in group:
                if term in terms:
                    break
            else:
                return False
        return self.passes_rest(record)

    def passes_rest(self, record: Record) -> bool:
        """Whether the record, known to have the terms, passes what terms cannot say."""
        if self._version is not None and not self._version.matches(record.version()):
            return False
        if self._capability_version is not None and not any(
            map(self._capability_version.matches, record.capability_versions(self._capability))
        ):
            return False
        return self._pattern is None or self._pattern.search(record.name) is not None


def compile_filter(message: ServiceFilter, at: str, violations: list[Violation]) -> Filter:
    """Compiles a filter.

    Args:
        message: The filter as the client sent it.
        at: Its path in the request, for violations.
        violations: What is wrong with it is added here.

    Returns:
        The compiled filter; of no use if violations were added.
    """
    required: list[str] = []
    any_of: list[tuple[str, ...]] = []

    def text(value: str, field: str) -> str:
        if len(value) > MAX_VALUE_LENGTH or not value.isprintable():
            violations.append(Violation(f"{at}.{field}", f"must be at most {MAX_VALUE_LENGTH} printable characters"))
        return value

    capability = text(message.capability, "capability")
    capability_version = _version_filter(message.capability_version, f"{at}.capability_version", violations)
    if capability:
        required.append(terms_of.capability_term(capability))
    if capability_version is not None:
        if not capability:
            violations.append(Violation(f"{at}.capability_version", "needs `capability` to be given too"))
        if capability_version.exact is not None:
            required.append(terms_of.capability_version_term(capability, capability_version.exact))
            capability_version = None
    version = _version_filter(message.version, f"{at}.version", violations)
    if version is not None and version.exact is not None:
        required.append(terms_of.version_term(version.exact))
        version = None
    if text(message.environment, "environment"):
        required.append(terms_of.environment_term(message.environment))
    if text(message.group, "group"):
        required.append(terms_of.group_term(message.group))

    if len(message.labels) > MAX_LABELS:
        violations.append(Violation(f"{at}.labels", f"has {len(message.labels)} labels; at most {MAX_LABELS}"))
    for key, value in sorted(message.labels.items())[:MAX_LABELS]:
        if not LABEL_KEY.fullmatch(key):
            violations.append(Violation(keyed(f"{at}.labels", key), f"key must match {LABEL_KEY.pattern}"))
        check_length(value, keyed(f"{at}.labels", key), MAX_LABEL_VALUE_LENGTH, violations)
        required.append(terms_of.label_term(key, value))

    if len(message.tags) > MAX_TAGS:
        violations.append(Violation(f"{at}.tags", f"has {len(message.tags)} tags; at most {MAX_TAGS}"))
    tags = message.tags[:MAX_TAGS]
    for i, tag in enumerate(tags):
        if not text(tag, f"tags[{i}]"):
            violations.append(Violation(f"{at}.tags[{i}]", "must not be empty"))
    if message.tag_match not in TagMatch.values():
        violations.append(Violation(f"{at}.tag_match", f"{message.tag_match} is not a TagMatch"))
    tag_terms = tuple(sorted({terms_of.tag_term(tag) for tag in tags}))
    if message.tag_match == TagMatch.TAG_MATCH_ALL or len(tag_terms) == 1:
        required.extend(tag_terms)
    elif tag_terms:
        any_of.append(tag_terms)

    if len(message.health) > MAX_HEALTH:
        violations.append(Violation(f"{at}.health", f"has {len(message.health)} values; at most {MAX_HEALTH}"))
    for i, status in enumerate(message.health[:MAX_HEALTH]):
        if status not in HealthStatus.values():
            violations.append(Violation(f"{at}.health[{i}]", f"{status} is not a HealthStatus"))
        elif status == HealthStatus.HEALTH_STATUS_UNSPECIFIED:
            violations.append(Violation(f"{at}.health[{i}]", "HEALTH_STATUS_UNSPECIFIED matches nothing; leave it out"))
    health_terms = tuple(sorted({terms_of.health_term(status) for status in message.health}))
    if len(health_terms) == 1:
        required.extend(health_terms)
    elif health_terms:
        any_of.append(health_terms)

    return Filter(
        key=_canonical(message),
        required=tuple(required),
        any_of=tuple(any_of),
        pattern=_pattern(message.name_pattern, f"{at}.name_pattern", violations),
        version=version,
        capability=capability,
        capability_version=capability_version,
    )


def _version_filter(text: str, at: str, violations: list[Violation]) -> VersionFilter | None:
    if not text:
        return None
    try:
        return parse_version_filter(text)
    except ValueError as error:
        violations.append(Violation(at, str(error)))
        return None


def _pattern(text: str, at: str, violations: list[Violation]) -> "re2._Regexp[str] | None":
    if not text:
        return None
    if len(text) > MAX_PATTERN_LENGTH:
        violations.append(Violation(at, f"has {len(text)} characters; at most {MAX_PATTERN_LENGTH}"))
        return None
    try:
        return re2.compile(text, _RE2_OPTIONS)
    except re2.error as error:
        violations.append(Violation(at, f"RE2 refuses this pattern: {_reason(error)}"))
        return None


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _canonical(message: ServiceFilter) -> bytes:
    canonical = ServiceFilter()
    canonical.CopyFrom(message)
    canonical.health[:] = sorted(set(message.health))
    canonical.tags[:] = sorted(set(message.tags))
    if len(canonical.tags) <= 1 or canonical.tag_match != TagMatch.TAG_MATCH_ALL:
        canonical.tag_match = TagMatch.TAG_MATCH_UNSPECIFIED
    return canonical.SerializeToString(deterministic=True)

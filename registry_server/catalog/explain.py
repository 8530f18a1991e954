"""``Explanations``: why a filter matches nothing, or not the service that the caller expects."""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, TypeAlias

from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.registry_service_pb2 import ExplainDiscoveryResponse, FilterCondition, WatchEventsResponse
from ossa.registry.v1.service_pb2 import ServiceFilter
from ossa_common.versions import newest_first
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.catalog.resemblance import resembling
from registry_server.catalog.summary import Finding, Relaxation, summarise
from registry_server.model.conditions import Condition, joined, split_filter, status_word
from registry_server.model.filters import Filter
from registry_server.model.record import Record
from registry_server.security.identity import current_identity

_MAX_NEAREST: Final = 5
_MAX_SIMILAR_NAMES: Final = 3
_MAX_RELAXED: Final = 8
"""Conditions up to which the filter is also tried without each of them."""
_MAX_RELAXED_NAMES: Final = 3
_STEP_NAMES: Final = 500
"""About 0.5 ms."""
_STEP_REMOVALS: Final = 8
"""Up to 8 ms, with the costliest pattern."""
_OPERATORS: Final = re.compile(r"[\\^$*+?()\[\]{}|]|^\.+|\.+(?=[*+?]|$)")
"""Characters of a pattern that a name does not contain."""

Compile: TypeAlias = Callable[[ServiceFilter], Filter]
"""Compiles a valid filter, joined with what the caller may see."""


class Explanations:
    """Evaluates the conditions of filters one by one. All scans run in slices of the event loop's time."""

    def __init__(self, replica: Replica, discovery: Discovery) -> None:
        self._replica = replica
        self._discovery = discovery

    async def explain(self, message: ServiceFilter, name: str, compile_: Compile) -> ExplainDiscoveryResponse:
        """Explain a valid filter, and whether it matches the service ``name``, unless that is empty."""
        everything, whole = compile_(ServiceFilter()), compile_(message)
        run = self._discovery.slices.run
        findings: list[Finding] = []
        for condition in split_filter(message):
            finding = Finding(condition, part := compile_(condition.part), await self._count(part))
            findings.append(finding)
            if not finding.count:
                await run(self._find_nearest(finding, everything))
        registered = len(self._replica.records)
        if everything.visible is not None:
            registered = len((await self._discovery.find_query(everything)).names)
        similar: list[str] = []
        if name and self._find_record(name, everything) is None:
            await run(self._find_similar(name, everything, similar))
        relaxation = None
        departed: list[Event] = []
        if not name and findings and not await self._count(whole):
            relaxation = await self._relax(findings, compile_)
            await run(self._find_departed(whole, everything, departed))
        total = await self._count(whole)
        # No await from here on: the total and the verdict are those of one revision.
        record = self._find_record(name, everything) if name else None
        response = ExplainDiscoveryResponse(
            total_size=total,
            conditions=[_condition_message(finding, record) for finding in findings],
            found=record is not None,
            matches=record is not None and whole.matches(record),
            last_event=self._last_event(name, record, everything) if name else None,
            similar_names=() if record else similar,
        )
        response.summary = summarise(
            response,
            name,
            findings,
            relaxation,
            registered,
            departed=next(iter(departed), None),
            restricted=current_identity.get().name if everything.visible is not None else "",
        )
        return response

    async def _count(self, filter_: Filter) -> int:
        if filter_.terms_only and not filter_.any_of and len(filter_.required) <= 1:
            required = filter_.required
            return self._replica.index.count(required[0]) if required else len(self._replica.records)
        return len(await self._discovery.matching_names(filter_))

    def _find_record(self, name: str, everything: Filter) -> Record | None:
        record = self._replica.records.get(name)
        return record if record is not None and not everything.hides(record) else None

    def _last_event(self, name: str, record: Record | None, everything: Filter) -> Event | None:
        """Return the newest kept change of a service, for a name without a record its removal."""
        replica = self._replica
        change = replica.history.at(record.revision) if record else replica.tombstones.get(name)
        if change is None or change.name != name:
            return None
        before, after = change.before, change.after
        appeared = before is not None and everything.hides(before)
        if after is None and (before is None or appeared):
            return None
        event = change.arrival() if appeared else change.event(matches=True)
        return WatchEventsResponse.FromString(event.frame).events[0]

    def _find_departed(self, whole: Filter, everything: Filter, departed: list[Event]) -> Iterator[None]:
        """Find the newest removal of a service that matched and is not registered again."""
        for i, removal in enumerate(self._replica.tombstones.newest_first()):
            if i % _STEP_REMOVALS == 0:
                yield
            before = removal.before
            gone = self._find_record(removal.name, everything) is None
            if gone and before is not None and whole.matches(before):
                departed += WatchEventsResponse.FromString(removal.event(matches=False).frame).events
                return

    # Nearest values.

    def _find_nearest(self, finding: Finding, everything: Filter) -> Iterator[None]:
        condition = finding.condition
        if condition.field == "available":
            return
        values = yield from self._visible_values(condition, everything)
        if condition.of_versions:
            for start in range(0, len(values), _STEP_NAMES):
                newest = newest_first([*finding.nearest, *filter(None, values[start : start + _STEP_NAMES])])
                finding.nearest = newest[:_MAX_NEAREST]
                yield
            return
        if condition.field != "health":
            for text in condition.part.tags or [_OPERATORS.sub("", condition.wanted)]:
                found = yield from resembling(text, values, _MAX_NEAREST)
                finding.nearest += [value for value in found if value not in finding.nearest]
        finding.alike = bool(finding.nearest)
        if not finding.nearest and len(values) <= _MAX_NEAREST:
            finding.nearest = sorted(values)
        del finding.nearest[_MAX_NEAREST:]

    def _visible_values(self, condition: Condition, everything: Filter) -> Generator[None, None, list[str]]:
        """Return the distinct values of a field that the services have which the caller sees."""
        records, index, prefix = self._replica.records, self._replica.index, condition.prefix
        if condition.field == "name_pattern":
            return (yield from self._visible_names(list(records), everything))
        if condition.field == "capability_version":
            terms = [prefix + version for version in index.capability_versions(condition.part.capability)]
        else:
            terms = index.terms(prefix[0])
        values: list[str] = []
        for i, term in enumerate(terms):
            if i % _STEP_NAMES == 0:
                yield
            if not term.startswith(prefix):
                continue
            if everything.visible is None or (yield from self._is_visible(list(index.names(term)), everything)):
                value = term[len(prefix) :]
                values.append(status_word(value) if condition.field == "health" else value)
        return values

    def _is_visible(self, names: Sequence[str], everything: Filter) -> Generator[None, None, bool]:
        for i, name in enumerate(names):
            if i % _STEP_NAMES == 0:  # also at once: each of many values may have some services
                yield
            if self._find_record(name, everything) is not None:
                return True
        return False

    def _visible_names(self, names: list[str], everything: Filter) -> Generator[None, None, list[str]]:
        if everything.visible is None:
            return names
        visible: list[str] = []
        for start in range(0, len(names), _STEP_NAMES):
            chunk = names[start : start + _STEP_NAMES]
            visible += [name for name in chunk if self._find_record(name, everything) is not None]
            yield
        return visible

    def _find_similar(self, name: str, everything: Filter, similar: list[str]) -> Iterator[None]:
        names = yield from self._visible_names(list(self._replica.records), everything)
        similar += yield from resembling(name, names, _MAX_SIMILAR_NAMES)

    # Relaxation.

    async def _relax(self, findings: Sequence[Finding], compile_: Compile) -> Relaxation | None:
        """Return a condition without which services match, the last in the order of fields: the first ones say most.

        ``None`` if no single one is the cause.
        """
        unmet = [finding for finding in findings if not finding.count]
        if not 1 < len(findings) <= _MAX_RELAXED or len(unmet) > 1:
            return None
        for finding in reversed(unmet or findings):
            rest = joined([each.condition for each in findings if each is not finding])
            names = await self._discovery.matching_names(compile_(rest))
            if names:
                records = [self._replica.records[name] for name in names[:_MAX_RELAXED_NAMES]]
                actual = [(record.name, finding.condition.actual(record)) for record in records]
                return Relaxation(finding.condition, len(names), actual)
        return None


def _condition_message(finding: Finding, record: Record | None) -> FilterCondition:
    condition = finding.condition
    return FilterCondition(
        field=condition.field,
        wanted=condition.wanted,
        matching_count=finding.count,
        nearest=finding.nearest,
        actual=condition.actual(record) if record else "",
        holds=record is not None and finding.part.matches(record),
    )

"""How an endpoint is picked among those that match: the hot path of ``ServiceCache``.

For each question (``Question``) a ``Pool`` is kept, with all that can be known beforehand: who matches, who of them may
be used, weights added up. A pick is then one step of an iterator or one comparison. A change of a service drops the
pools that it can change, and the next question makes them anew.
"""

import bisect
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from registry_client.errors import NoEndpoint
from registry_client.messages import HealthStatus, Service
from registry_client.versions import matcher

WEIGHT_LABEL: Final = "weight"
"""Label that gives the weight of a service for ``Policy.WEIGHTED_RANDOM``, a number from 0; 1 without it."""

_SMOOTHING: Final = 0.3
"""Share of the newest of the measured times in the estimate."""
_MEMORY: Final = 30.0
"""Seconds after which a measured time counts no more: else who was slow once would never be asked again."""
_RETHINK: Final = 1.0
"""Seconds after which the fastest is looked for again, though nothing was measured."""


class Policy(Enum):
    """How ``ServiceCache.resolve`` picks among the services that may be used."""

    ROUND_ROBIN = "round_robin"
    """One after another, from a random one on."""
    LEAST_RESPONSE_TIME = "least_response_time"
    """The fastest: by what ``ServiceCache.observe`` was told in the last 30 s, else by the probe that the registry told
    of last. Who was never measured comes first."""
    WEIGHTED_RANDOM = "weighted_random"
    """At random, in proportion to the label ``weight``; 1 without it, 0 = never."""


class Question(NamedTuple):
    """What a service must have to be picked."""

    capability: str
    version: str
    group: str
    environment: str
    labels: frozenset[tuple[str, str]]


class ResponseTimes:
    """Measured response times: an exponentially weighted mean for each service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.changes = 0
        self._means: dict[str, tuple[float, float]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Takes a measured time."""
        mean, at = self._means.get(name, (seconds, 0.0))
        now = self.clock()
        fresh = now - at < _MEMORY
        self._means[name] = (mean + _SMOOTHING * (seconds - mean) if fresh else seconds), now
        self.changes += 1

    def forget(self, name: str) -> None:
        """Forgets a service that is gone."""
        self._means.pop(name, None)

    def of(self, service: Service) -> float:
        """Seconds that a service is expected to take; 0 if nothing is known."""
        mean, at = self._means.get(service.name, (0.0, float("-inf")))
        if self.clock() - at < _MEMORY:
            return mean
        return service.health.response_time.ToNanoseconds() / 1e9


class Pool:
    """The services that answer one question, and one picker for each policy, made when it is first used."""

    def __init__(
        self, matching: Iterable[Service], fallback: Sequence[HealthStatus.ValueType], times: ResponseTimes
    ) -> None:
        self.matching = tuple(matching)
        self.usable = _usable(self.matching, fallback)
        self.keys: list[tuple[object, ...]] = []
        """Under what its picks are kept."""
        self._times = times
        self.pick_next: Callable[[], Service] = self._one_after_another()

    def picker(self, policy: Policy) -> Callable[[], Service]:
        """The function that picks by a policy."""
        match policy:
            case Policy.ROUND_ROBIN:
                return self.pick_next
            case Policy.LEAST_RESPONSE_TIME:
                return self._fastest()
            case Policy.WEIGHTED_RANDOM:
                return self._by_weight()

    def refuse(self, question: Question) -> NoEndpoint:
        """The error of a pool without anybody to pick."""
        asked = ", ".join(f"{key}={value}" for key, value in _asked(question).items()) or "any service"
        if not self.matching:
            return NoEndpoint(f"no service matches {asked}")
        counts: dict[str, int] = {}
        for service in self.matching:
            name = HealthStatus.Name(service.health.status).removeprefix("HEALTH_STATUS_").lower()
            counts[name] = counts.get(name, 0) + 1
        seen = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return NoEndpoint(f"no service that matches {asked} may be used: {seen}")

    def _one_after_another(self) -> Callable[[], Service]:
        # From a random one on: else all processes, and all pools after each change, would begin with the same.
        start = random.randrange(len(self.usable)) if self.usable else 0  # noqa: S311 - spreads load, keeps no secret
        return itertools.cycle(self.usable[start:] + self.usable[:start]).__next__

    def _fastest(self) -> Callable[[], Service]:
        times, usable = self._times, self.usable
        best, changes, until = usable[0], -1, 0.0

        def pick() -> Service:
            nonlocal best, changes, until
            now = times.clock()
            if changes != times.changes or now >= until:
                best, changes, until = min(usable, key=times.of), times.changes, now + _RETHINK
            return best

        return pick

    def _by_weight(self) -> Callable[[], Service]:
        usable = self.usable
        sums = list(itertools.accumulate(map(_weight, usable)))
        total = sums[-1]
        if total <= 0:
            return lambda: random.choice(usable)  # noqa: S311 - all weights are 0: nobody is preferred

        def pick() -> Service:
            return usable[bisect.bisect_right(sums, random.random() * total)]  # noqa: S311 - as above

        return pick


def matches(question: Question) -> Callable[[Service], bool]:
    """Makes the test for a question.

    Raises:
        ValueError: ``version`` is not a version or a range that is understood in process.
    """
    capability, version, group, environment, labels = question
    fits = matcher(version) if version else None

    def test(service: Service) -> bool:
        if group and (service.group or service.name) != group:
            return False
        if environment and service.metadata.environment != environment:
            return False
        if any(service.metadata.labels.get(key) != value for key, value in labels):
            return False
        if not capability:
            return fits is None or fits(service.version)
        return any(each.name == capability and (fits is None or fits(each.version)) for each in service.capabilities)

    return test


def _usable(services: Sequence[Service], fallback: Sequence[HealthStatus.ValueType]) -> tuple[Service, ...]:
    for status in (HealthStatus.HEALTH_STATUS_HEALTHY, *fallback):
        if found := tuple(service for service in services if service.health.status == status):
            return found
    return ()


def _weight(service: Service) -> float:
    try:
        weight = float(service.metadata.labels.get(WEIGHT_LABEL, "1"))
    except ValueError:
        return 1.0  # a label is anybody's text: it must not keep a service from being found
    return weight if 0 <= weight < float("inf") else 1.0


def _asked(question: Question) -> Mapping[str, str]:
    fields = question._asdict()
    labels = fields.pop("labels")
    return {key: value for key, value in fields.items() if value} | {f"label {key}": value for key, value in labels}

"""Endpoint selection among the matching services: the hot path of ``ServiceCache``.

For each ``Query`` the cache keeps a ``Pool`` with everything that can be computed in advance: the matching services,
the usable ones among them, and cumulative weights. A selection is then one step of an iterator or one comparison. A
change of a service drops the affected pools, and the next query builds them again.
"""

import bisect
import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypedDict

from ossa.registry.v1.service_pb2 import HealthStatus, Service
from ossa_common.json_shape import STATUS_WORDS
from ossa_common.versions import parse_version_filter
from registry_client.errors import NoEndpoint
from registry_client.outliers import max_ejected

WEIGHT_LABEL: Final = "weight"
"""Label with the weight of a service for ``Policy.WEIGHTED_RANDOM``: a number of at least 0. The default is 1."""

_EWMA_WEIGHT: Final = 0.3
"""Weight of the newest measurement in the exponentially weighted moving average."""
_MEASUREMENT_TTL_SECONDS: Final = 30.0
"""Lifetime of a measurement. Without it, a service that was slow once would never be selected and measured again."""
_FASTEST_MAX_AGE_SECONDS: Final = 1.0
"""How long a computed fastest service is used while no new measurement arrives."""


class Policy(StrEnum):
    """How ``ServiceCache.resolve`` selects among the usable services."""

    ROUND_ROBIN = "round_robin"
    """One after another, beginning with a random one."""
    LEAST_RESPONSE_TIME = "least_response_time"
    """The fastest, according to the ``ServiceCache.observe`` calls of the last 30 s, else to the registry's last probe.
    Services without any measurement come first."""
    LEAST_REQUEST = "least_request"
    """The one with fewer requests in flight of this cache, among two random services ("power of two choices"). A
    request begins with ``ServiceCache.resolve`` with this policy, and ends with ``ServiceCache.observe``."""
    WEIGHTED_RANDOM = "weighted_random"
    """At random, in proportion to the label ``weight``; the default weight is 1, and 0 excludes a service."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        raise ValueError(f"policy: {value!r} is not a Policy; use one of {', '.join(map(str, cls))}")


class Criteria(TypedDict, total=False):
    """Keyword arguments of ``ServiceCache.resolve``."""

    version: str
    group: str
    environment: str
    labels: Mapping[str, str] | None
    policy: Policy | None
    exclude: Collection[str | Service]


class Query(NamedTuple):
    """The properties that a service must have to be selected; empty fields match every service."""

    capability: str
    version: str
    group: str
    environment: str
    labels: frozenset[tuple[str, str]]


class ResponseTimes:
    """Measured response times: an exponentially weighted moving average for each service."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.changes = 0
        self._averages: dict[str, tuple[float, float]] = {}

    def record(self, name: str, seconds: float) -> None:
        """Add a measurement."""
        average, measured_at = self._averages.get(name, (seconds, 0.0))
        now = self.clock()
        fresh = now - measured_at < _MEASUREMENT_TTL_SECONDS
        self._averages[name] = (average + _EWMA_WEIGHT * (seconds - average) if fresh else seconds), now
        self.changes += 1

    def discard(self, name: str) -> None:
        """Remove the measurements of a service."""
        self._averages.pop(name, None)

    def expected_seconds(self, service: Service) -> float:
        """Return the expected response time of a service; 0 if it was never measured."""
        average, measured_at = self._averages.get(service.name, (0.0, float("-inf")))
        if self.clock() - measured_at < _MEASUREMENT_TTL_SECONDS:
            return average
        return service.health.response_time.ToNanoseconds() / 1e9


class Requests:
    """The number of requests in flight for each service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # pickers are called from any thread
        self._in_flight: dict[str, int] = {}

    def begin_at_less_busy(self, one: Service, other: Service) -> Service:
        """Select the service with fewer requests in flight, ``one`` if they have equally many; count a request."""
        with self._lock:
            ours, others = self._in_flight.get(one.name, 0), self._in_flight.get(other.name, 0)
            chosen, count = (one, ours) if ours <= others else (other, others)
            self._in_flight[chosen.name] = count + 1
            return chosen

    def end(self, name: str) -> None:
        """Record the end of a request, if one was counted."""
        with self._lock:
            count = self._in_flight.pop(name, 0) - 1
            if count > 0:
                self._in_flight[name] = count

    def discard(self, name: str) -> None:
        """Forget the requests of a service."""
        with self._lock:
            self._in_flight.pop(name, None)


class Pool:
    """The services that match one query, and a picker for each policy, created on first use.

    Args:
        matching: The services that match.
        fallback: Statuses that are acceptable if no service is healthy.
        times: The response times of the cache.
        requests: The requests in flight of the cache.
        ejected: Names of services that are not used, except that some service always is.
    """

    def __init__(
        self,
        matching: Iterable[Service],
        fallback: Sequence[HealthStatus.ValueType],
        times: ResponseTimes,
        requests: Requests,
        ejected: Collection[str] = (),
    ) -> None:
        self.matching = tuple(matching)
        self.usable = _usable_services(self.matching, fallback)
        if ejected:
            unused = [each.name for each in self.usable if each.name in ejected][: max_ejected(len(self.usable))]
            self.usable = tuple(each for each in self.usable if each.name not in unused)
        self._requests = requests
        self.picker_keys: list[tuple[object, ...]] = []
        """Keys under which the cache holds the pickers of this pool."""
        self._times = times
        self.pick_next: Callable[[], Service] = self._round_robin()

    def picker(self, policy: Policy) -> Callable[[], Service]:
        """Return a function that selects a service by a policy."""
        match Policy(policy):
            case Policy.ROUND_ROBIN:
                return self.pick_next
            case Policy.LEAST_RESPONSE_TIME:
                return self._least_response_time()
            case Policy.LEAST_REQUEST:
                return self._least_request()
            case Policy.WEIGHTED_RANDOM:
                return self._weighted_random()

    def no_endpoint_error(self, query: Query) -> NoEndpoint:
        """Return the error for a pool without usable services."""
        conditions = ", ".join(f"{key}={value}" for key, value in _conditions(query).items()) or "any service"
        if not self.matching:
            return NoEndpoint(f"no service matches {conditions}")
        counts: dict[str, int] = {}
        for service in self.matching:
            word = "draining" if service.draining else STATUS_WORDS.get(service.health.status, "unknown")
            counts[word] = counts.get(word, 0) + 1
        found = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
        return NoEndpoint(f"no usable service matches {conditions}: found {found}")

    def _round_robin(self) -> Callable[[], Service]:
        # A random start keeps all processes, and all pools after a change, from beginning with the same service.
        start = random.randrange(len(self.usable)) if self.usable else 0  # noqa: S311 - load distribution, not a secret
        return itertools.cycle(self.usable[start:] + self.usable[:start]).__next__

    def _least_response_time(self) -> Callable[[], Service]:
        times, usable = self._times, self.usable
        fastest, changes, valid_until = usable[0], -1, 0.0

        def pick() -> Service:
            nonlocal fastest, changes, valid_until
            now = times.clock()
            if changes != times.changes or now >= valid_until:
                fastest, changes = min(usable, key=times.expected_seconds), times.changes
                valid_until = now + _FASTEST_MAX_AGE_SECONDS
            return fastest

        return pick

    def _least_request(self) -> Callable[[], Service]:
        usable, count, begin = self.usable, len(self.usable), self._requests.begin_at_less_busy

        def pick() -> Service:
            first = int(random.random() * count)  # noqa: S311 - load distribution, not a secret
            second = (first + 1 + int(random.random() * (count - 1))) % count  # noqa: S311 - as above
            return begin(usable[first], usable[second])

        return pick

    def _weighted_random(self) -> Callable[[], Service]:
        usable = self.usable
        sums = list(itertools.accumulate(map(_weight, usable)))
        total = sums[-1]
        if total <= 0:
            return lambda: random.choice(usable)  # noqa: S311 - all weights are 0, so all services are equal

        def pick() -> Service:
            return usable[bisect.bisect_right(sums, random.random() * total)]  # noqa: S311 - as above

        return pick


def query_matcher(query: Query) -> Callable[[Service], bool]:
    """Return a function that tests whether a service matches a query.

    Raises:
        ValueError: ``version`` is neither a version nor a range that this client supports.
    """
    capability, version, group, environment, labels = query
    version_matches = parse_version_filter(version).matches if version else None

    def matches(service: Service) -> bool:
        if group and (service.group or service.name) != group:
            return False
        if environment and service.metadata.environment != environment:
            return False
        if any(service.metadata.labels.get(key) != value for key, value in labels):
            return False
        if not capability:
            return version_matches is None or version_matches(service.version)
        return any(
            each.name == capability and (version_matches is None or version_matches(each.version))
            for each in service.capabilities
        )

    return matches


def _usable_services(services: Sequence[Service], fallback: Sequence[HealthStatus.ValueType]) -> tuple[Service, ...]:
    for status in (HealthStatus.HEALTH_STATUS_HEALTHY, *fallback):
        if found := tuple(each for each in services if each.health.status == status and not each.draining):
            return found
    return ()


def _weight(service: Service) -> float:
    try:
        weight = float(service.metadata.labels.get(WEIGHT_LABEL, "1"))
    except ValueError:
        return 1.0  # labels are free text: an invalid weight must not exclude a service
    return weight if 0 <= weight < float("inf") else 1.0


def _conditions(query: Query) -> Mapping[str, str]:
    fields = query._asdict()
    labels = fields.pop("labels")
    return {key: value for key, value in fields.items() if value} | {f"label {key}": value for key, value in labels}

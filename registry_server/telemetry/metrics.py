"""Metrics in the text format of Prometheus, read from the parts when they are asked for."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from registry_server.health import LATENESS_BOUNDS, HealthMonitor, OutcomeKind

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_PREFIX = "ossa_registry_"


class Metrics(Collector):
    """What one process tells of itself."""

    def __init__(self, monitor: HealthMonitor) -> None:
        self._monitor = monitor

    def text(self) -> bytes:
        """All metrics, in the text format 0.0.4."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics of health monitoring."""
        monitor = self._monitor
        figures = monitor.figures
        outcomes = CounterMetricFamily(_PREFIX + "probes", "Probes that ended, by their outcome", labels=["outcome"])
        for kind in OutcomeKind:
            outcomes.add_metric([kind.value], figures.outcomes[kind])
        yield outcomes
        yield CounterMetricFamily(
            _PREFIX + "probes_late", "Probes that began more than a second after they were due", value=figures.late
        )
        bounds = [*(str(bound) for bound in LATENESS_BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            _PREFIX + "probe_lateness_seconds",
            "How long after it was due a probe began",
            buckets=list(zip(bounds, accumulate(figures.lateness), strict=True)),
            sum_value=figures.lateness_sum,
        )
        yield GaugeMetricFamily(
            _PREFIX + "probed_services", "Services that this process probes", value=monitor.probed_services
        )
        yield GaugeMetricFamily(
            _PREFIX + "members", "Live processes among which probes are shared out", value=monitor.members
        )
        yield GaugeMetricFamily(
            _PREFIX + "protection_active",
            "Whether this process sees too many services fail at once and has frozen statuses",
            value=monitor.protection_active,
        )
        yield CounterMetricFamily(
            _PREFIX + "standstills",
            "How often this process stood still, so that probes under way did not count",
            value=monitor.standstills,
        )

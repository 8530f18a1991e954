"""The metrics of several processes behind one port as one text."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_LABEL = "worker"


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def joined(texts: Mapping[str, str]) -> bytes:
    """Puts metrics side by side, each sample with a label ``worker``, as a Prometheus with several targets would.

    Not added up: a worker that is replaced begins at zero, which only its own series may show.

    Args:
        texts: What each worker tells, in the text format 0.0.4, by its number.
    """
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        for told in text_string_to_metric_families(text):
            family = families.get(told.name)
            if family is None:
                family = families[told.name] = Metric(told.name, told.documentation, told.type)
            for sample in told.samples:
                labels = {_LABEL: worker, **sample.labels}
                family.add_sample(sample.name, labels, sample.value)
    return generate_latest(_Families(families.values()))

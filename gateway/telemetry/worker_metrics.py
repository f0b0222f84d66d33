"""Shows the workers' own metrics beside the gateway's, labelled with who reported them."""

import math
import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from protocol.wire.messages import MetricSample
from protocol.wire.peers import Peer

MAX_SERIES = 20_000
"""Series of all workers together; what is beyond is counted, not shown."""
MAX_LABELS = 8
MAX_LABEL_CHARACTERS = 200
MAX_BUCKETS = 64
_MAX_HELP_CHARACTERS = 300
_NAME = re.compile(r"penstock_[a-z][a-z0-9_]{0,99}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,49}")
# These names mean something else in the text format, or belong to the gateway.
_TAKEN_SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created", "_info")
_TAKEN_PREFIX = "penstock_gateway_"
_TAKEN_LABELS = frozenset({"role", "instance", "model", "le"})


class WorkerMetricsCollector(Collector):
    """The latest report of every connected worker; with a worker its series go.

    Each series gets the labels `role`, `instance` and, for engines, `model`. What a worker reports
    is checked, because a foreign one may report anything: a series with a bad name, label or value
    is left out, and so is one whose name another worker uses for another kind.

    Args:
        peers: The workers that are connected.
    """

    def __init__(self, peers: Callable[[], Iterable[Peer]]) -> None:
        self._peers = peers

    def collect(self) -> Iterable[Family]:
        """The families as they stand now, and how many series could not be shown."""
        families: dict[str, Family] = {}
        shown: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        num_dropped = 0
        for peer in self._peers():
            for sample in peer.metrics:
                labels = {**dict(sample.labels), **_identity(peer)}
                series = (sample.name, frozenset(labels.items()))
                family = _family(families, sample) if _is_usable(sample) else None
                if family is None or series in shown or len(shown) >= MAX_SERIES:
                    num_dropped += 1
                    continue
                shown.add(series)
                add_sample(family, sample, labels)
        yield from families.values()
        yield GaugeMetricFamily(
            "penstock_gateway_dropped_worker_series",
            "Series that workers report and that could not be shown.",
            value=num_dropped,
        )


def _identity(peer: Peer) -> dict[str, str]:
    identity = {"role": peer.role, "instance": peer.instance_id}
    if peer.role == "engine":
        identity["model"] = "" if peer.engine is None else peer.engine.model
    return identity


def _is_usable(sample: MetricSample) -> bool:
    if not _NAME.fullmatch(sample.name) or sample.name.startswith(_TAKEN_PREFIX):
        return False
    if sample.name.endswith(_TAKEN_SUFFIXES) or len(sample.labels) > MAX_LABELS:
        return False
    if len({label for label, _ in sample.labels}) != len(sample.labels):
        return False
    for label, value in sample.labels:
        if not _LABEL.fullmatch(label) or label in _TAKEN_LABELS:
            return False
        if len(value) > MAX_LABEL_CHARACTERS:
            return False
    if sample.kind == "histogram":
        return _is_histogram(sample)
    if sample.kind == "counter":
        return math.isfinite(sample.value) and sample.value >= 0
    return True


def _is_histogram(sample: MetricSample) -> bool:
    bounds = sample.bounds
    return (
        math.isfinite(sample.value)
        and len(bounds) <= MAX_BUCKETS
        and len(sample.counts) == len(bounds) + 1
        and all(count >= 0 for count in sample.counts)
        and all(math.isfinite(bound) for bound in bounds)
        and all(low < high for low, high in pairwise(bounds))
    )


def _family(families: dict[str, Family], sample: MetricSample) -> Family | None:
    """The family of a series; None when its name stands for another kind already."""
    family = families.get(sample.name)
    if family is None:
        help_text = sample.help[:_MAX_HELP_CHARACTERS]
        family = families[sample.name] = Family(sample.name, help_text, sample.kind)
    return family if family.type == sample.kind else None


def add_sample(family: Family, sample: MetricSample, labels: dict[str, str]) -> None:
    """Put a series into its family."""
    if sample.kind == "counter":
        family.add_sample(f"{sample.name}_total", labels, sample.value)
    elif sample.kind == "gauge":
        family.add_sample(sample.name, labels, sample.value)
    else:
        num_observations = 0
        for bound, count in zip((*sample.bounds, math.inf), sample.counts, strict=True):
            num_observations += count
            upper = "+Inf" if bound == math.inf else repr(float(bound))
            family.add_sample(f"{sample.name}_bucket", {**labels, "le": upper}, num_observations)
        family.add_sample(f"{sample.name}_count", labels, num_observations)
        family.add_sample(f"{sample.name}_sum", labels, sample.value)

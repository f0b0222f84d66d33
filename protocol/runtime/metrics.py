"""A worker's counters, gauges and histograms, taken as one message that gateways show on /metrics.

Thread-safe: compute threads count, the I/O thread takes samples. A series is a name with a value
for each of its labels; the number of series is bounded by the caller's choice of labels.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from protocol.wire.messages.metrics import MetricKind, Metrics, MetricSample

SECONDS_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
"""Bounds of histograms of durations, in seconds."""

_MetricT = TypeVar("_MetricT", bound="Metric")


class Metric:
    """A family of series under one name; made by `MetricRegistry`.

    Args:
        kind: How values are to be read.
        name: Prometheus spelling without `_total`, beginning with `penstock_`.
        help_text: One sentence for people.
        labels: Names of the labels; every use gives a value for each.
    """

    def __init__(
        self, kind: MetricKind, name: str, help_text: str, labels: Sequence[str] = ()
    ) -> None:
        self.kind: MetricKind = kind
        self.name = name
        self.help_text = help_text
        self._labels = tuple(labels)
        self._lock = threading.Lock()

    def samples(self) -> list[MetricSample]:
        """All series of the family."""
        raise NotImplementedError

    def _pairs(self, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        return tuple(zip(self._labels, values, strict=True))


class Counter(Metric):
    """A number that only grows."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        super().__init__("counter", name, help_text, labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1.0, *label_values: str) -> None:
        """Add to the series of these label values."""
        with self._lock:
            self._values[label_values] = self._values.get(label_values, 0.0) + amount

    def samples(self) -> list[MetricSample]:
        with self._lock:
            values = list(self._values.items())
        return [
            MetricSample(
                name=self.name,
                kind=self.kind,
                help=self.help_text,
                labels=self._pairs(labels),
                value=value,
            )
            for labels, value in values
        ]


class Gauge(Metric):
    """A number read from `read` whenever samples are taken."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        super().__init__("gauge", name, help_text)
        self._read = read

    def samples(self) -> list[MetricSample]:
        return [
            MetricSample(
                name=self.name, kind=self.kind, help=self.help_text, value=float(self._read())
            )
        ]


class Info(Metric):
    """What a worker is, in labels: series of the value 1, told once it is known."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        super().__init__("gauge", name, help_text, labels)
        self._shown: tuple[tuple[str, ...], ...] = ()

    def show(self, series: Iterable[tuple[str, ...]]) -> None:
        """These label values from now on, instead of those before."""
        self._shown = tuple(series)

    def samples(self) -> list[MetricSample]:
        return [
            MetricSample(
                name=self.name,
                kind=self.kind,
                help=self.help_text,
                labels=self._pairs(labels),
                value=1.0,
            )
            for labels in self._shown
        ]


class Histogram(Metric):
    """Observations counted by size."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float] = SECONDS_BUCKETS,
    ) -> None:
        super().__init__("histogram", name, help_text, labels)
        self._bounds = tuple(float(bound) for bound in bounds)
        self._series: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *label_values: str, times: int = 1) -> None:
        """Count an observation, or several equal ones."""
        with self._lock:
            series = self._series.get(label_values)
            if series is None:
                series = self._series[label_values] = ([0] * (len(self._bounds) + 1), [0.0])
            series[0][bisect_left(self._bounds, value)] += times
            series[1][0] += value * times

    def samples(self) -> list[MetricSample]:
        with self._lock:
            series = [
                (key, tuple(counts), total[0]) for key, (counts, total) in self._series.items()
            ]
        return [
            MetricSample(
                name=self.name,
                kind=self.kind,
                help=self.help_text,
                labels=self._pairs(labels),
                value=total,
                bounds=self._bounds,
                counts=counts,
            )
            for labels, counts, total in series
        ]


class MetricRegistry:
    """All metrics of one worker process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter."""
        return self._add(Counter(name, help_text, labels))

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> Gauge:
        """A new gauge; `read` is called in the I/O thread and must return at once."""
        return self._add(Gauge(name, help_text, read))

    def info(self, name: str, help_text: str, labels: Sequence[str]) -> Info:
        """What is told in labels."""
        return self._add(Info(name, help_text, labels))

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        """A new histogram."""
        return self._add(Histogram(name, help_text, labels, bounds=bounds))

    def metrics(self) -> Sequence[Metric]:
        """All families, in the order in which they were made."""
        return tuple(self._metrics.values())

    def message(self) -> Metrics:
        """All series as they stand now."""
        samples = (sample for metric in self.metrics() for sample in metric.samples())
        return Metrics(samples=tuple(samples))

    def _add(self, metric: _MetricT) -> _MetricT:
        if metric.name in self._metrics or not metric.name.startswith("penstock_"):
            raise ValueError(f"{metric.name} exists already or lacks the prefix penstock_")
        self._metrics[metric.name] = metric
        return metric

"""A worker's metrics on the wire; gateways show them with their own."""

from typing import Literal

from protocol.wire.messages.base import Message, Part

MetricKind = Literal["counter", "gauge", "histogram"]


class MetricSample(Part, frozen=True):
    """One time series as it stands now.

    Attributes:
        name: In Prometheus spelling without `_total`, `penstock_engine_tokens`.
        labels: (label, value) in a fixed order.
        value: Of a counter or gauge; the sum of a histogram's observations.
        bounds: Upper bounds of a histogram's buckets, rising, without infinity.
        counts: Observations in each bucket, not cumulative, the one beyond all bounds last.
    """

    name: str
    kind: MetricKind
    help: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    value: float = 0.0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class Metrics(Message, frozen=True, tag="metrics"):
    """All series of a worker, sent every few seconds."""

    samples: tuple[MetricSample, ...] = ()

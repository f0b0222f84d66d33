"""Prometheus metrics of one gateway, in a registry of its own."""

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.telemetry.worker_metrics import add_sample
from protocol.runtime.metrics import Counter, Histogram, MetricRegistry
from protocol.wire.messages import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_ITL_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_E2E_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)


class GenerationRecord(Struct, frozen=True):
    """What is counted of one generation.

    Attributes:
        duration_s: From arrival to end.
        first_output_s: From arrival to the first output; None when there was none.
        longest_choice: Output tokens of the choice that has most.
        num_malformed: Tool calls that broke their format.
        num_resumed: How often its choices went on at another engine.
        num_replayed: How often its text was replayed to another parser.
    """

    model: str
    outcome: str
    usage: Usage
    duration_s: float
    first_output_s: float | None
    longest_choice: int
    num_malformed: int
    num_resumed: int = 0
    num_replayed: int = 0


_PREFIX = "penstock_gateway"


class Metrics:
    """What a gateway counts; names begin with `penstock_gateway_`.

    Counted as workers count; Prometheus's own library, which renders it, takes several calls and a
    lock for each bucket.
    """

    def __init__(self) -> None:
        self._counted = MetricRegistry()
        self.registry = CollectorRegistry()
        self.registry.register(CountedCollector(self._counted))
        self.http_requests = self._counter("http_requests", "HTTP answers.", "route", "status")
        self.generations = self._counter(
            "generations",
            "Generations by how they ended: finished, aborted or failed.",
            "model",
            "outcome",
        )
        self.time_to_first_token_s = self._histogram(
            "time_to_first_token_seconds",
            "From the request's arrival to its first output.",
            _TTFT_BUCKETS,
            "model",
        )
        self.inter_token_latency_s = self._histogram(
            "inter_token_latency_seconds",
            "Mean time between the tokens of a choice, one observation a request.",
            _ITL_BUCKETS,
            "model",
        )
        self.request_duration_s = self._histogram(
            "request_duration_seconds",
            "From the request's arrival to its end.",
            _E2E_BUCKETS,
            "model",
        )
        self.tokens = self._counter(
            "tokens", "Tokens: prompt, cached, completion or reasoning.", "model", "kind"
        )
        self.routed_choices = self._counter(
            "routed_choices",
            "Choices by route: cached, overloaded (a longer prefix was passed over) or none.",
            "model",
            "outcome",
        )
        self.resumptions = self._counter(
            "resumptions",
            "Choices that continued on another engine, and answers replayed to another parser.",
            "model",
            "role",
        )
        self.malformed_calls = self._counter(
            "malformed_tool_calls", "Tool calls of models that broke their format.", "model"
        )
        self.hook_calls = self._counter(
            "hook_calls",
            "Calls of hooks by how they ended: ok, refused, failed or timeout.",
            "hook",
            "outcome",
        )
        self.event_loop_lag_s = self._histogram(
            "event_loop_lag_seconds", "How late a timer of the event loop came.", _LAG_BUCKETS
        )
        self.event_loop_lag_s.observe(0.0, times=0)  # its one series is there from the start

    def on_http_answer(self, route: str, status: int) -> None:
        """Count one HTTP answer."""
        self.http_requests.add(1, route, str(status))

    def observe_generation(self, record: GenerationRecord) -> None:
        """Count one generation that has ended."""
        model, usage = record.model, record.usage
        self.generations.add(1, model, record.outcome)
        self.request_duration_s.observe(record.duration_s, model)
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if count:
                self.tokens.add(count, model, kind)
        if record.first_output_s is not None:
            self.time_to_first_token_s.observe(record.first_output_s, model)
            if record.longest_choice > 1:
                spent_s = record.duration_s - record.first_output_s
                self.inter_token_latency_s.observe(spent_s / (record.longest_choice - 1), model)
        if record.num_malformed:
            self.malformed_calls.add(record.num_malformed, model)
        if record.num_resumed:
            self.resumptions.add(record.num_resumed, model, "engine")
        if record.num_replayed:
            self.resumptions.add(record.num_replayed, model, "toolparser")

    def render(self) -> bytes:
        """The metrics as Prometheus text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._counted.counter(f"{_PREFIX}_{name}", text, labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return self._counted.histogram(f"{_PREFIX}_{name}", text, labels, bounds=buckets)


class CountedCollector(Collector):
    """What a process has counted, as Prometheus's library renders it.

    Args:
        counted: Its metrics.
    """

    def __init__(self, counted: MetricRegistry) -> None:
        self._counted = counted

    def collect(self) -> Iterable[Metric]:
        """Every family, also one that has no series yet."""
        for metric in self._counted.metrics():
            family = Metric(metric.name, metric.help_text, metric.kind)
            for sample in metric.samples():
                add_sample(family, sample, dict(sample.labels))
            yield family


class StateCollector(Collector):
    """Values that are read from the gateway's state whenever somebody scrapes.

    Args:
        read: Gives rows of name, help, label names, and values by labels; a name that ends in
            `_total` makes a counter.
    """

    def __init__(
        self,
        read: Callable[
            [], Iterable[tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]]
        ],
    ) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The values as they stand now."""
        for name, documentation, labels, values in self._read():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"penstock_gateway_{name}", documentation, labels=list(labels))
            for label_values, value in values.items():
                family.add_metric(list(label_values), value)
            yield family

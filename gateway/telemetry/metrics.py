"""Prometheus metrics of one gateway, in a registry of its own."""

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
    """What a gateway counts; names begin with `penstock_gateway_`."""

    def __init__(self) -> None:
        # They double the number of series and nobody reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._answers: dict[tuple[str, int], Counter] = {}
        self._by_model: dict[str, _ModelMetrics] = {}
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

    def on_http_answer(self, route: str, status: int) -> None:
        """Count one HTTP answer."""
        counter = self._answers.get((route, status))
        if counter is None:
            # Looking labels up costs more than counting.
            counter = self.http_requests.labels(route, str(status))
            self._answers[route, status] = counter
        counter.inc()

    def observe_generation(self, record: GenerationRecord) -> None:
        """Count one generation that has ended."""
        model = self._by_model.get(record.model)
        if model is None:
            model = self._by_model[record.model] = _ModelMetrics(self, record.model)
        model.observe(record)

    def render(self) -> bytes:
        """The metrics as Prometheus text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)


class _ModelMetrics:
    """The series of one model, looked up once: that costs more than counting."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._outcomes: dict[str, Counter] = {}
        self._tokens: dict[str, Counter] = {}
        self._duration = metrics.request_duration_s.labels(model)
        # A series that nothing was observed for would only look like one.
        self._first_token: Histogram | None = None
        self._between_tokens: Histogram | None = None

    def observe(self, record: GenerationRecord) -> None:
        """Count one generation."""
        outcome = self._outcomes.get(record.outcome)
        if outcome is None:
            outcome = self._metrics.generations.labels(self._model, record.outcome)
            self._outcomes[record.outcome] = outcome
        outcome.inc()
        self._duration.observe(record.duration_s)
        usage = record.usage
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if count:
                if kind not in self._tokens:
                    self._tokens[kind] = self._metrics.tokens.labels(self._model, kind)
                self._tokens[kind].inc(count)
        if record.first_output_s is not None:
            if self._first_token is None:
                self._first_token = self._metrics.time_to_first_token_s.labels(self._model)
            self._first_token.observe(record.first_output_s)
            if record.longest_choice > 1:
                if self._between_tokens is None:
                    self._between_tokens = self._metrics.inter_token_latency_s.labels(self._model)
                spent_s = record.duration_s - record.first_output_s
                self._between_tokens.observe(spent_s / (record.longest_choice - 1))
        self._count_trouble(record)

    def _count_trouble(self, record: GenerationRecord) -> None:
        metrics, model = self._metrics, self._model
        if record.num_malformed:
            metrics.malformed_calls.labels(model).inc(record.num_malformed)
        if record.num_resumed:
            metrics.resumptions.labels(model, "engine").inc(record.num_resumed)
        if record.num_replayed:
            metrics.resumptions.labels(model, "toolparser").inc(record.num_replayed)


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

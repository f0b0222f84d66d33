"""The workers' metrics on /metrics: labelled, checked, bounded, gone with their worker."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry import worker_metrics
from gateway.telemetry.worker_metrics import WorkerMetricsCollector
from protocol.runtime.metrics import MetricRegistry
from protocol.version import PROTOCOL_VERSION
from protocol.wire.messages import Credits, EngineOffer, MetricSample, Role
from protocol.wire.peers import Peer

OFFER = EngineOffer(
    model="demo",
    fingerprint="f",
    resume_version=1,
    max_model_len=100,
    created=0,
    credits=Credits(max_requests=1, max_tokens=100),
)


def peer(name: str, *samples: MetricSample, role: Role = "engine") -> Peer:
    return Peer(
        identity=name.encode(),
        role=role,
        instance_id=name,
        protocol_version=PROTOCOL_VERSION,
        build="",
        last_heard=0.0,
        progress_since=0.0,
        phase_since=0.0,
        phase="ready",
        engine=OFFER if role == "engine" else None,
        metrics=samples,
    )


def scrape(*peers: Peer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    registry.register(WorkerMetricsCollector(lambda: peers))
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def gauge(name: str = "penstock_engine_running", **changes: Any) -> MetricSample:
    options: dict[str, Any] = {"kind": "gauge", "value": 1.0, **changes}
    return MetricSample(name=name, **options)


def num_dropped(series: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> float:
    return series["penstock_gateway_dropped_worker_series", frozenset()]


def test_what_a_registry_counts_comes_out_with_role_instance_and_model() -> None:
    registry = MetricRegistry()
    registry.counter("penstock_engine_tokens", "Tokens.", ("kind",)).add(3, "prompt")
    registry.gauge("penstock_engine_running", "Running.", lambda: 7)
    times = registry.histogram("penstock_engine_step_seconds", "Steps.", bounds=(0.1, 1.0))
    times.observe(0.05)
    times.observe(0.5, times=2)
    times.observe(9.0)
    series = scrape(peer("e1", *registry.message().samples))
    who = {("role", "engine"), ("instance", "e1"), ("model", "demo")}
    assert series["penstock_engine_tokens_total", frozenset({*who, ("kind", "prompt")})] == 3
    assert series["penstock_engine_running", frozenset(who)] == 7
    buckets = [
        series["penstock_engine_step_seconds_bucket", frozenset({*who, ("le", upper)})]
        for upper in ("0.1", "1.0", "+Inf")
    ]
    assert buckets == [1, 3, 4]
    assert series["penstock_engine_step_seconds_count", frozenset(who)] == 4
    assert series["penstock_engine_step_seconds_sum", frozenset(who)] == pytest.approx(10.05)
    assert num_dropped(series) == 0


def test_workers_of_one_role_stand_side_by_side_and_leave_with_their_series() -> None:
    both = scrape(peer("e1", gauge()), peer("e2", gauge(value=2.0)))
    assert sorted(value for (name, _), value in both.items() if "running" in name) == [1.0, 2.0]
    one = scrape(peer("e2", gauge(value=2.0)))
    assert [value for (name, _), value in one.items() if "running" in name] == [2.0]


def test_only_engines_have_a_model() -> None:
    series = scrape(peer("p", gauge("penstock_toolparser_sessions"), role="toolparser"))
    labels = frozenset({("role", "toolparser"), ("instance", "p")})
    assert series["penstock_toolparser_sessions", labels] == 1.0


@pytest.mark.parametrize(
    "sample",
    [
        gauge("up"),
        gauge("penstock_gateway_tokens"),
        gauge("penstock_engine_tokens_total"),
        gauge("penstock_engine_x_bucket"),
        gauge("penstock_Engine"),
        gauge("penstock_engine\n"),
        gauge("penstock_" + "a" * 200),
        gauge(labels=(("role", "auth"),)),
        gauge(labels=(("bad label", "x"),)),
        gauge(labels=(("kind", "x" * 300),)),
        gauge(labels=(("kind", "a"), ("kind", "b"))),
        gauge(labels=tuple((f"label_{index}", "x") for index in range(20))),
        gauge(kind="counter", value=-1.0),
        gauge(kind="counter", value=float("nan")),
        gauge(kind="histogram", bounds=(1.0, 0.5), counts=(1, 1, 1)),
        gauge(kind="histogram", bounds=(1.0,), counts=(1,)),
        gauge(kind="histogram", bounds=(1.0,), counts=(1, -1)),
        gauge(kind="histogram", bounds=(float("inf"),), counts=(1, 1)),
    ],
)
def test_a_series_that_would_spoil_the_page_is_left_out_and_counted(sample: MetricSample) -> None:
    series = scrape(peer("e1", sample, gauge("penstock_engine_good")))
    assert num_dropped(series) == 1
    assert {name for name, _ in series} == {
        "penstock_engine_good",
        "penstock_gateway_dropped_worker_series",
    }


def test_a_series_reported_twice_or_under_another_kind_is_shown_once() -> None:
    series = scrape(peer("e1", gauge(), gauge(value=5.0)), peer("e2", gauge(kind="counter")))
    assert [value for (name, _), value in series.items() if "running" in name] == [1.0]
    assert num_dropped(series) == 2


def test_the_page_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_metrics, "MAX_SERIES", 3)
    many = [gauge(f"penstock_engine_{letter}") for letter in "abcdefgh"]
    assert num_dropped(scrape(peer("e1", *many))) == 5


def test_label_values_and_help_are_escaped() -> None:
    nasty = 'a"b\\c\nd'
    series = scrape(peer("e1", gauge(labels=(("kind", nasty),), help="x\ny")))
    assert [labels for name, labels in series if "running" in name] == [
        frozenset({("kind", nasty), ("role", "engine"), ("instance", "e1"), ("model", "demo")})
    ]

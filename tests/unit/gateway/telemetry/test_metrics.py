"""What a gateway counts, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import GenerationRecord, Metrics
from protocol.wire.messages import Usage

Sample = tuple[str, frozenset[tuple[str, str]]]


def shown(metrics: Metrics) -> dict[Sample, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name.removeprefix("penstock_gateway_"), frozenset(sample.labels.items())): float(
            sample.value
        )
        for family in families
        for sample in family.samples
    }


def of(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def generation(**fields: object) -> GenerationRecord:
    default: dict[str, object] = {
        "model": "demo",
        "outcome": "finished",
        "usage": Usage(3, 16, 2),
        "duration_s": 1.75,
        "first_output_s": 0.25,
        "longest_choice": 16,
        "num_malformed": 0,
    }
    return GenerationRecord(**{**default, **fields})  # type: ignore[arg-type]


def test_a_generation_is_counted_by_its_model() -> None:
    metrics = Metrics()
    metrics.observe_generation(generation())
    metrics.observe_generation(generation(outcome="failed", first_output_s=None, num_resumed=2))
    found = shown(metrics)
    assert found[of("generations_total", model="demo", outcome="finished")] == 1
    assert found[of("generations_total", model="demo", outcome="failed")] == 1
    assert found[of("request_duration_seconds_bucket", model="demo", le="1.0")] == 0
    assert found[of("request_duration_seconds_bucket", model="demo", le="2.0")] == 2
    assert found[of("request_duration_seconds_sum", model="demo")] == 3.5
    assert found[of("time_to_first_token_seconds_count", model="demo")] == 1
    assert found[of("inter_token_latency_seconds_bucket", model="demo", le="0.1")] == 1
    assert found[of("inter_token_latency_seconds_bucket", model="demo", le="0.05")] == 0
    assert found[of("tokens_total", model="demo", kind="prompt")] == 6
    assert found[of("tokens_total", model="demo", kind="cached")] == 4
    assert of("tokens_total", model="demo", kind="reasoning") not in found
    assert found[of("resumptions_total", model="demo", role="engine")] == 2
    assert not any(name == "malformed_tool_calls_total" for name, _ in found)


def test_answers_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 404):
        metrics.on_http_answer("/v1/models", status)
    found = shown(metrics)
    assert found[of("http_requests_total", route="/v1/models", status="200")] == 2
    assert found[of("http_requests_total", route="/v1/models", status="404")] == 1


def test_every_family_is_told_before_anything_was_counted() -> None:
    metrics = Metrics()
    text = metrics.render().decode()
    assert "# TYPE penstock_gateway_generations_total counter" in text
    assert "# TYPE penstock_gateway_time_to_first_token_seconds histogram" in text
    assert shown(metrics)[of("event_loop_lag_seconds_count")] == 0

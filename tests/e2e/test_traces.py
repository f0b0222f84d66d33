"""A request's way through all processes of a server, as a collector of traces sees it."""

from pathlib import Path

import pytest

from tests.e2e.harness import start_harness, stop_harness
from tests.fakes.otlp_collector import otlp_collector

pytestmark = pytest.mark.process
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_one_trace_goes_through_all_processes(tmp_path: Path, cache_dir: Path) -> None:
    with otlp_collector() as collector:
        harness = start_harness(tmp_path / "data", cache_dir, PENSTOCK_OTLP_ENDPOINT=collector.url)
        try:
            completion = harness.client().chat.completions.create(
                model="penstock-demo",
                messages=[{"role": "user", "content": "What is the weather in Paris?"}],
                tools=[WEATHER],
            )
        finally:
            # What is left is told at the end of each process.
            assert stop_harness(harness) == 0
        (http,) = collector.named("POST /v1/chat/completions")
        (work,) = collector.named("chat penstock-demo")
        ours = [span for span in collector.spans if span.trace_id == http.trace_id]
        assert work.parent_id == http.span_id
        assert work.attributes["gen_ai.usage.input_tokens"] == completion.usage.prompt_tokens
        assert work.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
        steps = {(span.service.removeprefix("penstock-"), span.name) for span in ours}
        assert steps >= {
            ("gateway", "authorize"),
            ("gateway", "prepare"),
            ("auth", "auth.decide"),
            ("engine", "engine.tokenize"),
            ("engine", "engine.queue"),
            ("engine", "engine.prefill"),
            ("engine", "engine.decode"),
            ("toolparser", "parse"),
        }
        assert {span.parent_id for span in ours if span not in (http, work)} == {work.span_id}
        (decode,) = [span for span in ours if span.name == "engine.decode"]
        tokens = completion.usage.completion_tokens
        assert decode.attributes["penstock.output_tokens"] == tokens
        for text in (b"weather in Paris", b"get_weather", b'"city"'):
            assert text not in collector.raw

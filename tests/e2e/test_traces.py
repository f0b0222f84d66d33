"""A request's way through all processes of a server, as a collector of traces sees it."""

import pytest

from tests.e2e.harness import Harness, eventually
from tests.fakes.otlp_collector import Collector, ToldSpan

pytestmark = pytest.mark.process
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLIENT, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
"""The place in a trace of the client's own: the server's trace names it, and is known by it here,
among those of other tests."""
STEPS = {
    ("gateway", "authorize"),
    ("gateway", "prepare"),
    ("auth", "auth.decide"),
    ("engine", "engine.tokenize"),
    ("engine", "engine.queue"),
    ("engine", "engine.prefill"),
    ("engine", "engine.decode"),
    ("toolparser", "parse"),
}


def ours(collector: Collector) -> list[ToldSpan]:
    """The spans of the trace that names the client's."""
    http = [one for one in collector.spans if (CLIENT, CLIENT_SPAN) in one.links]
    return [one for one in collector.spans if one.trace_id in {span.trace_id for span in http}]


def steps(collector: Collector) -> set[tuple[str, str]]:
    return {(span.service.removeprefix("penstock-"), span.name) for span in ours(collector)}


def test_one_trace_goes_through_all_processes(harness: Harness, collector: Collector) -> None:
    completion = harness.client().chat.completions.create(
        model="penstock-demo",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        extra_headers={"traceparent": f"00-{CLIENT}-{CLIENT_SPAN}-01"},
    )
    named = {("gateway", "POST /v1/chat/completions"), ("gateway", "chat penstock-demo")}
    eventually(lambda: steps(collector) >= STEPS | named)  # each process tells every two seconds
    spans = ours(collector)
    (http,) = [span for span in spans if span.name == "POST /v1/chat/completions"]
    (work,) = [span for span in spans if span.name == "chat penstock-demo"]
    assert work.parent_id == http.span_id
    assert work.attributes["gen_ai.usage.input_tokens"] == completion.usage.prompt_tokens
    assert work.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert {span.parent_id for span in spans if span not in (http, work)} == {work.span_id}
    (decode,) = [span for span in spans if span.name == "engine.decode"]
    tokens = completion.usage.completion_tokens
    assert decode.attributes["penstock.output_tokens"] == tokens
    assert "get_weather" not in repr(spans)
    for text in (b"weather in Paris", b'"city"'):
        assert text not in collector.raw

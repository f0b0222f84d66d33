"""What a collector is told of one piece of work: its steps, its usage, and no text."""

from typing import Any

import pytest

from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import CHAT_ENDPOINT
from gateway.request.lifecycle.work_trace import (
    PROVIDER,
    WorkTrace,
    generation_attributes,
)
from protocol.runtime import tracing
from protocol.runtime.tracing import Attributes, Span, TraceContext, context_of
from protocol.wire.messages import SamplingParams, Usage
from tests.fakes.request_parts import generation_job

PARENT = TraceContext(trace_id=0xABC, span_id=0xDEF)
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3, reasoning_tokens=2)


class DoneWork:
    def __init__(
        self,
        endpoint: str = CHAT_ENDPOINT,
        model: str = "m",
        *,
        is_served: bool = True,
        **said: Any,
    ) -> None:
        self.endpoint, self.model, self.is_served = endpoint, model, is_served
        self._said = said

    def trace_attributes(self) -> Attributes:
        return self._said


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    told: list[Span] = []
    monkeypatch.setattr(tracing, "tell", told.append)
    return told


def tell(
    trace: WorkTrace,
    work: DoneWork,
    usage: Usage = USAGE,
    first_output_s: float | None = None,
    error: str = "",
) -> None:
    trace.tell(work, usage, began_at=1.0, ended_at=3.5, first_output_s=first_output_s, error=error)


def test_workers_get_a_place_of_their_own_in_the_trace_of_the_request() -> None:
    place = context_of(WorkTrace(PARENT).traceparent)
    assert place is not None
    assert place.trace_id == PARENT.trace_id
    assert place.span_id != PARENT.span_id


def test_the_work_belongs_to_its_request_and_its_steps_to_the_work(spans: list[Span]) -> None:
    trace = WorkTrace(PARENT)
    trace.tell_step("prepare", 1.25, 1.5)
    tell(trace, DoneWork())
    step, whole = spans
    assert whole.context == context_of(trace.traceparent)
    assert whole.parent_id == PARENT.span_id
    assert (whole.started_at, whole.ended_at) == (1.0, 3.5)
    assert step.parent_id == whole.context.span_id
    assert step.context.trace_id == PARENT.trace_id
    assert step.context != whole.context
    assert (step.name, step.started_at, step.ended_at) == ("prepare", 1.25, 1.5)
    assert not step.attributes


def test_usage_model_and_what_the_work_says_are_told(spans: list[Span]) -> None:
    tell(WorkTrace(PARENT), DoneWork(extra="said"))
    assert spans[0].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "extra": "said",
    }
    assert spans[0].error == ""


def test_the_first_output_and_an_error_are_told_where_there_were_any(spans: list[Span]) -> None:
    tell(WorkTrace(PARENT), DoneWork(), first_output_s=0.0, error="timeout")
    attributes = spans[0].attributes
    assert attributes["gen_ai.response.time_to_first_chunk"] == 0.0
    assert attributes["error.type"] == spans[0].error == "timeout"


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("/v1/chat/completions", "chat m"),
        ("/v1/messages", "chat m"),
        ("/v1/responses", "chat m"),
        ("/v1/responses/compact", "chat m"),
        ("/v1/completions", "text_completion m"),
        ("/v1/embeddings", "embeddings m"),
        ("/v1/rerank", "/v1/rerank m"),
    ],
)
def test_a_span_is_named_by_its_operation_and_its_model(
    spans: list[Span], endpoint: str, name: str
) -> None:
    tell(WorkTrace(PARENT), DoneWork(endpoint))
    assert spans[0].name == name


def test_a_model_that_no_engine_serves_may_be_made_up_and_names_no_span(spans: list[Span]) -> None:
    tell(WorkTrace(PARENT), DoneWork(model="made up", is_served=False))
    assert spans[0].name == "chat"
    assert spans[0].attributes["gen_ai.request.model"] == "made up"


def test_work_without_a_model_names_none(spans: list[Span]) -> None:
    tell(WorkTrace(PARENT), DoneWork("/v1/parse", model="", is_served=False))
    assert spans[0].name == "/v1/parse"
    assert "gen_ai.request.model" not in spans[0].attributes
    assert "gen_ai.response.model" not in spans[0].attributes


def test_what_was_asked_for_is_told_by_its_numbers() -> None:
    sampling = SamplingParams(
        seed=1,
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        frequency_penalty=0.125,
        presence_penalty=-1.0,
    )
    options = AnswerOptions(is_streaming=True, num_choices=2)
    job = generation_job("a secret prompt", max_tokens=9, sampling=sampling, options=options)
    attributes = generation_attributes(job, "gpt-4o", ["stop", "length"])
    assert attributes == {
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.25,
        "gen_ai.request.top_k": 4,
        "gen_ai.request.frequency_penalty": 0.125,
        "gen_ai.request.presence_penalty": -1.0,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.finish_reasons": ("stop", "length"),
    }


def test_what_is_as_always_is_left_out() -> None:
    attributes = generation_attributes(generation_job(max_tokens=None), "m", [])
    assert not attributes.keys() & {
        "gen_ai.request.choice.count",
        "gen_ai.request.max_tokens",
        "gen_ai.response.finish_reasons",
    }
    assert attributes["gen_ai.request.stream"] is False

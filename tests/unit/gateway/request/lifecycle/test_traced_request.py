"""What a request's life tells a collector: steps with their times, and one span at its end."""

import asyncio
from dataclasses import replace

import pytest

from gateway.errors import GatewayError, OverloadedError
from protocol.runtime import tracing
from protocol.runtime.tracing import Span, TraceContext, context_of
from protocol.wire.messages import Authorize, Generate, Prepare, Usage
from tests.fakes.request_parts import CALLER, Generation, Parts, generation_job
from tests.fakes.virtual_time import idle

PARENT = TraceContext(trace_id=0xABC, span_id=0xDEF)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    told: list[Span] = []
    monkeypatch.setattr(tracing, "tell", told.append)
    return told


async def traced(parts: Parts) -> Generation:
    request, work = parts.factory.generation(generation_job(), replace(CALLER, trace=PARENT), "r")
    started = Generation(parts, request, work)
    await idle()
    return started


async def test_each_step_is_told_with_its_time_and_the_whole_at_the_end(spans: list[Span]) -> None:
    parts = Parts()
    one = parts.engine(max_requests=1)
    held = parts.handle(one)
    held.num_requests = 1
    started = await traced(parts)
    await asyncio.sleep(1.0)
    await parts.grant()
    await asyncio.sleep(2.0)
    held.num_requests = 0
    parts.admission.pump("m")
    await idle()
    await asyncio.sleep(3.0)
    await parts.prepare_next()
    await started.task
    await asyncio.sleep(4.0)
    await parts.output(one)
    await asyncio.sleep(5.0)
    assert [span.name for span in spans] == ["authorize", "queue", "prepare"]
    await parts.finish(one, usage=Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1))
    times = {span.name: (span.started_at, span.ended_at) for span in spans}
    assert times == {
        "authorize": (0.0, 1.0),
        "queue": (1.0, 3.0),
        "prepare": (1.0, 6.0),
        "text_completion m": (0.0, 15.0),
    }
    whole = spans[-1]
    assert whole.parent_id == PARENT.span_id
    assert whole.error == ""
    assert whole.attributes["gen_ai.response.time_to_first_chunk"] == 10.0
    assert whole.attributes["gen_ai.usage.output_tokens"] == 2
    assert whole.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    (question,) = parts.auth_wire.of(Authorize)
    (prepare,) = parts.engine_wire.of(Prepare)
    (generate,) = parts.engine_wire.of(Generate)
    told = {question.traceparent, prepare.traceparent, generate.traceparent}
    assert told == {started.request.traceparent}
    assert context_of(told.pop()) == whole.context


@pytest.mark.parametrize(
    ("outcome", "error", "told"),
    [
        ("failed", OverloadedError("full"), "overloaded"),
        ("failed", GatewayError("a bug"), "internal_error"),
        ("aborted", None, "aborted"),
    ],
)
async def test_why_it_ended_is_told(
    spans: list[Span], outcome: str, error: GatewayError | None, told: str
) -> None:
    parts = Parts()
    parts.engine()
    started = await traced(parts)
    started.request.end(outcome, error)  # type: ignore[arg-type]
    await started.error()
    # Of a step that was cut off its time is told, too.
    whole, step = spans
    assert (whole.name, step.name) == ("text_completion", "authorize")
    assert (whole.error, step.error) == (told, "")
    assert whole.attributes["error.type"] == told


async def test_of_a_request_that_is_not_traced_nothing_is_told(spans: list[Span]) -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.running()
    await parts.finish(one)
    assert (started.request.traceparent, spans) == ("", [])
    assert [generate.traceparent for generate in parts.generates()] == [""]


async def test_times_of_an_answer_count_from_its_arrival() -> None:
    parts = Parts()
    one = parts.engine()
    started = await parts.generation()
    assert [started.request.first_output_s] == [None]
    await asyncio.sleep(1.5)
    assert started.request.elapsed_s == 1.5
    await parts.grant()
    await parts.prepare_next()
    await started.task
    await asyncio.sleep(1.0)
    await parts.output(one)
    await asyncio.sleep(2.0)
    assert (started.request.first_output_s, started.request.elapsed_s) == (2.5, 4.5)
    assert started.request.remaining_s() == 55.5
    started.request.end("aborted")

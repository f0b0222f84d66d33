"""Events to bytes: chunks, whole answers, usage, errors."""

import json
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.errors import WorkerLostError
from gateway.http.render.answer import ChatCollector, CompletionCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.stream import (
    ChatStreamRenderer,
    CompletionStreamRenderer,
)
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
    total_usage,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.wire.messages import Usage
from tests.fakes.running_gateway import events_of

HEAD = AnswerHead(id="chatcmpl-1", created=5, model='m"\n', system_fingerprint="fp_1")
USAGE = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1, reasoning_tokens=2)
EVENTS: list[GenerationEvent] = [
    ReasoningText(0, "hm"),
    ContentText(0, 'a"\n\u2028é😀'),
    ToolCallStarted(0, 0, "call_1", "f"),
    ToolCallArguments(0, 0, '{"x":'),
    ContentText(1, "b"),
    ToolCallArguments(0, 0, "1}"),
    ChoiceFinished(0, "tool_calls", USAGE),
    ChoiceFinished(1, "length", USAGE),
]


def rendered(events: list[GenerationEvent], *, include_usage: bool) -> list[Any]:
    renderer = ChatStreamRenderer(HEAD, AnswerOptions(include_usage=include_usage))
    return events_of((renderer.render(events) + renderer.finish(USAGE)).decode())


def test_each_chunk_is_one_that_openais_own_types_accept() -> None:
    *chunks, done = rendered(EVENTS, include_usage=True)
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=False)
        assert chunk["model"] == 'm"\n'


def test_a_choice_opens_with_its_role_once() -> None:
    *chunks, _ = rendered(EVENTS, include_usage=False)
    roles = [
        chunk["choices"][0]["index"] for chunk in chunks if "role" in chunk["choices"][0]["delta"]
    ]
    assert roles == [0, 1]


def test_text_survives_quotes_line_ends_and_emoji() -> None:
    *chunks, _ = rendered([ContentText(0, 'a"\n\u2028é😀')], include_usage=False)
    assert chunks[1]["choices"][0]["delta"] == {"content": 'a"\n\u2028é😀'}


def test_the_same_bytes_come_out_however_events_are_bunched() -> None:
    together = ChatStreamRenderer(HEAD).render(EVENTS)
    apart = ChatStreamRenderer(HEAD)
    assert together == b"".join(apart.render([event]) for event in EVENTS)


def test_a_completion_stream_has_text_and_a_finish_reason() -> None:
    renderer = CompletionStreamRenderer(HEAD, AnswerOptions(include_usage=True))
    pieces = renderer.render([ContentText(0, "x"), ChoiceFinished(0, "stop", USAGE)])
    *chunks, usage, done = events_of((pieces + renderer.finish(USAGE)).decode())
    assert done == "[DONE]"
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ("x", None),
        ("", "stop"),
    ]
    for chunk in (*chunks, usage):
        assert chunk["object"] == "text_completion"
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_a_whole_chat_answer_is_one_that_openais_own_types_accept() -> None:
    collector = ChatCollector(HEAD, 2)
    collector.add(EVENTS)
    body = json.loads(collector.body(USAGE))
    answer = ChatCompletion.model_validate(body)
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.arguments == '{"x":1}'
    assert body["choices"][0]["message"]["reasoning_content"] == "hm"
    assert body["choices"][1]["message"]["content"] == "b"


def test_content_is_null_beside_calls_and_empty_without() -> None:
    collector = ChatCollector(HEAD, 2)
    collector.add([ToolCallStarted(0, 0, "c", "f")])
    first, second = json.loads(collector.body(USAGE))["choices"]
    assert first["message"]["content"] is None
    assert second["message"]["content"] == ""


def test_a_whole_completion_is_one_that_openais_own_types_accept() -> None:
    collector = CompletionCollector(HEAD, 1)
    collector.add([ContentText(0, "x"), ContentText(0, "y"), ChoiceFinished(0, "stop", USAGE)])
    answer = Completion.model_validate(json.loads(collector.body(USAGE)))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("xy", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7


def test_an_error_in_a_stream_is_one_event_and_the_closing_mark() -> None:
    error, done = events_of(ChatStreamRenderer(HEAD).fail(WorkerLostError("gone")).decode())
    assert error["error"]["message"] == "gone"
    assert done == "[DONE]"


def test_a_prompt_is_counted_once_for_all_its_choices() -> None:
    usages = [Usage(prompt_tokens=10, completion_tokens=n) for n in (1, 2, 3, 4)]
    assert total_usage(usages, num_choices=2) == Usage(prompt_tokens=20, completion_tokens=10)


def test_what_one_choice_computed_for_the_others_was_not_cached_before() -> None:
    usages = [
        Usage(prompt_tokens=10, cached_tokens=8),
        Usage(prompt_tokens=10, cached_tokens=4),
        Usage(),
        Usage(prompt_tokens=9, cached_tokens=0),
        Usage(prompt_tokens=9, cached_tokens=8),
        Usage(prompt_tokens=9, cached_tokens=8),
    ]
    assert total_usage(usages, num_choices=3).cached_tokens == 4

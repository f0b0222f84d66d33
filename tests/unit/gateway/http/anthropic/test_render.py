"""Events to Messages answers, streams, errors and headers."""

import json
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter

from gateway.errors import InvalidRequestError, UnsupportedFieldError, WorkerLostError
from gateway.http.anthropic.errors import limit_headers
from gateway.http.anthropic.render import (
    MessageCollector,
    MessageHead,
    MessageStreamRenderer,
    signature_of,
)
from gateway.http.errors.error_shape import is_anthropic, raised_answer
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
    UsageTold,
)
from protocol.errors import ErrorCode
from protocol.wire.messages import LimitState, Usage
from tests.fakes.late import anthropic

HEAD = MessageHead(id="msg_1", model="m", request_id="r1", max_model_len=100)
USAGE = Usage(prompt_tokens=30, completion_tokens=4, cached_tokens=10, reasoning_tokens=2)
CALL: list[GenerationEvent] = [
    ToolCallStarted(0, 0, "call_1", "f"),
    ToolCallArguments(0, 0, '{"x": '),
    ToolCallArguments(0, 0, "1}"),
]
EVENTS: list[GenerationEvent] = [
    ReasoningText(0, "hm"),
    ReasoningText(0, "?"),
    ContentText(0, 'a"\n\u2028é😀'),
    ContentText(0, "b"),
    *CALL,
    ToolCallStarted(0, 1, "functions.g:1", "g"),
    ChoiceFinished(0, "tool_calls", USAGE),
]
TOLD = UsageTold(0, Usage(prompt_tokens=30, completion_tokens=1, cached_tokens=10))


def whole(*events: GenerationEvent, head: MessageHead = HEAD) -> dict[str, Any]:
    collector = MessageCollector(head)
    collector.add(events)
    found: dict[str, Any] = orjson.loads(collector.body(USAGE))
    return found


def streamed(*events: GenerationEvent, head: MessageHead = HEAD) -> list[dict[str, Any]]:
    renderer = MessageStreamRenderer(head)
    sent = b"".join(renderer.render([event]) for event in events) + renderer.finish(USAGE)
    found = []
    for event in sent.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_whole_answer_is_one_that_anthropics_own_types_accept() -> None:
    answer = whole(*EVENTS)
    anthropic.types.Message.model_validate(answer)
    assert answer["content"] == [
        {"type": "thinking", "thinking": "hm?", "signature": signature_of("hm?")},
        {"type": "text", "text": 'a"\n\u2028é😀b'},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "functions.g:1", "name": "g", "input": {}},
    ]
    assert answer["stop_reason"] == "tool_use"
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (20, 10)
    assert (usage["output_tokens"], usage["output_tokens_details"]) == (4, {"thinking_tokens": 2})


def test_a_stream_tells_block_after_block_and_anthropics_own_types_accept_each_event() -> None:
    events = streamed(TOLD, *EVENTS)
    for event in events:
        TypeAdapter(anthropic.types.RawMessageStreamEvent).validate_python(event)
    kinds = [(event["type"], event.get("index")) for event in events]
    start, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    assert kinds == [
        ("message_start", None),
        *((start, 0), (delta, 0), (delta, 0), (delta, 0), (stop, 0)),
        *((start, 1), (delta, 1), (delta, 1), (stop, 1)),
        *((start, 2), (delta, 2), (delta, 2), (stop, 2)),
        *((start, 3), (stop, 3)),
        ("message_delta", None),
        ("message_stop", None),
    ]
    message = events[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    assert message["usage"]["input_tokens"] == 20
    assert events[4]["delta"] == {"type": "signature_delta", "signature": signature_of("hm?")}
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 4


def test_a_stream_joins_to_the_whole_answer() -> None:
    content: list[dict[str, Any]] = []
    for event in streamed(*EVENTS):
        if event["type"] == "content_block_start":
            content.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            (name,) = delta.keys() - {"type"}
            content[-1][name] = content[-1].get(name, "") + delta[name]
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("partial_json", "{}"))
    assert content == whole(*EVENTS)["content"]


def test_reasoning_that_nobody_asked_for_is_not_told() -> None:
    head = MessageHead("msg_1", "m", "r1", shows_thinking=False)
    kinds = [block["type"] for block in whole(*EVENTS, head=head)["content"]]
    assert kinds == ["text", "tool_use", "tool_use"]
    assert "thinking" not in json.dumps(streamed(*EVENTS, head=head)[1:-2])


@pytest.mark.parametrize(
    ("end", "stop"),
    [
        # `tool_choice` named the tool.
        (ChoiceFinished(0, "stop", USAGE), ("tool_use", None)),
        (ChoiceFinished(0, "tool_calls", USAGE, "END"), ("tool_use", None)),
        (ChoiceFinished(0, "length", USAGE), ("max_tokens", None)),
        (ChoiceFinished(0, "stop", USAGE, "END"), ("stop_sequence", "END")),
    ],
)
def test_a_call_that_a_stop_sequence_cut_is_nothing_to_run(
    end: ChoiceFinished, stop: tuple[str, str | None]
) -> None:
    cut = CALL if stop[0] == "tool_use" else CALL[:2]
    answer = whole(*cut, end)
    assert (answer["stop_reason"], answer["stop_sequence"]) == stop
    told = {"stop_reason": stop[0], "stop_sequence": stop[1]}
    assert streamed(*cut, end)[-2]["delta"] == told


@pytest.mark.parametrize(
    ("end", "stop"),
    [
        (ChoiceFinished(0, "tool_calls", USAGE, "END", is_call_cut=True), ("stop_sequence", "END")),
        (ChoiceFinished(0, "tool_calls", USAGE, "END"), ("tool_use", None)),
        (ChoiceFinished(0, "tool_calls", USAGE, 7, is_call_cut=True), ("end_turn", None)),
        (ChoiceFinished(0, "stop", USAGE, is_call_cut=True), ("end_turn", None)),
        (ChoiceFinished(0, "length", USAGE, is_call_cut=True), ("max_tokens", None)),
    ],
)
def test_nothing_is_run_of_an_answer_whose_last_call_was_cut(
    end: ChoiceFinished, stop: tuple[str, str | None]
) -> None:
    rest = '{"y": 2}' if stop[0] == "tool_use" else '{"y": '
    cut = [*CALL, ToolCallStarted(0, 1, "call_2", "g"), ToolCallArguments(0, 1, rest)]
    answer = whole(*cut, end)
    assert (answer["stop_reason"], answer["stop_sequence"]) == stop
    told = {"stop_reason": stop[0], "stop_sequence": stop[1]}
    assert streamed(*cut, end)[-2]["delta"] == told


@pytest.mark.parametrize(
    ("end", "stop"),
    [
        (ChoiceFinished(0, "stop", USAGE), ("end_turn", None)),
        (ChoiceFinished(0, "stop", USAGE, "END"), ("stop_sequence", "END")),
        (ChoiceFinished(0, "stop", USAGE, 7), ("end_turn", None)),
        (ChoiceFinished(0, "length", USAGE), ("max_tokens", None)),
        (
            ChoiceFinished(0, "length", Usage(prompt_tokens=90, completion_tokens=10)),
            ("model_context_window_exceeded", None),
        ),
    ],
)
def test_why_it_ended(end: ChoiceFinished, stop: tuple[str, str | None]) -> None:
    answer = whole(ContentText(0, "x"), end)
    assert (answer["stop_reason"], answer["stop_sequence"]) == stop
    assert streamed(ContentText(0, "x"), end)[-2]["delta"] == {
        "stop_reason": stop[0],
        "stop_sequence": stop[1],
    }


@pytest.mark.parametrize(
    ("max_tokens", "reason"),
    [
        (10, "max_tokens"),  # which exactly fills the context, and is no more than was asked for
        (11, "model_context_window_exceeded"),
        (None, "model_context_window_exceeded"),
    ],
)
def test_an_answer_that_has_all_it_might_have_was_not_ended_by_the_context(
    max_tokens: int | None, reason: str
) -> None:
    head = MessageHead("msg_1", "m", "r1", max_model_len=100, max_tokens=max_tokens)
    usage = Usage(prompt_tokens=90, completion_tokens=10)
    events = (ContentText(0, "x"), ChoiceFinished(0, "length", usage))
    assert whole(*events, head=head)["stop_reason"] == reason
    assert streamed(*events, head=head)[-2]["delta"]["stop_reason"] == reason


def test_a_named_tool_ends_with_tool_use() -> None:
    assert whole(*CALL, ChoiceFinished(0, "stop", USAGE))["stop_reason"] == "tool_use"


def test_arguments_that_were_cut_are_no_input() -> None:
    answer = whole(*CALL[:2], ChoiceFinished(0, "length", USAGE))
    assert answer["content"][0]["input"] == {"INVALID_JSON": '{"x": '}
    assert answer["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("arguments", ['{"x": "a" "y": 1}', "[1]", "7"])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_call_that_broke_is_neither_one_without_arguments_nor_anything_to_run(
    arguments: str, is_last: bool
) -> None:
    broken: list[GenerationEvent] = [
        ToolCallStarted(0, 0, "call_1", "f"),
        ToolCallArguments(0, 0, arguments),
    ]
    good: list[GenerationEvent] = [
        ToolCallStarted(0, 1, "call_2", "g"),
        ToolCallArguments(0, 1, '{"y": 2}'),
    ]
    calls = [*good, *broken] if is_last else [*broken, *good]
    answer = whole(*calls, ChoiceFinished(0, "tool_calls", USAGE))
    inputs = {block["name"]: block["input"] for block in answer["content"]}
    assert inputs == {"f": {"INVALID_JSON": arguments}, "g": {"y": 2}}
    assert answer["stop_reason"] == "end_turn"
    events = streamed(*calls, ChoiceFinished(0, "tool_calls", USAGE))
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_an_answer_without_output_is_whole() -> None:
    end = ChoiceFinished(0, "length", USAGE)
    assert whole(end)["content"] == []
    assert [event["type"] for event in streamed(end)] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_a_late_failure_is_an_event() -> None:
    event = MessageStreamRenderer(HEAD).fail(WorkerLostError("gone")).decode()
    name, data = event.strip().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert (error["type"], error["request_id"]) == ("error", "r1")
    assert error["error"]["type"] == "overloaded_error"


def scope(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"path": path, "headers": headers, "state": {"request_id": "r", "trace_id": ""}}


def test_errors_speak_the_language_of_their_path() -> None:
    status, body, headers = raised_answer(scope("/v1/messages"), WorkerLostError("gone"))
    assert (status, json.loads(body)["error"]["type"]) == (529, "overloaded_error")
    assert headers["Retry-After"]
    status, body, _ = raised_answer(scope("/v1/chat/completions"), WorkerLostError("gone"))
    assert (status, json.loads(body)["error"]["type"]) == (503, "server_error")


def test_a_prompt_that_is_too_long_is_told_in_words_that_agents_look_for() -> None:
    error = InvalidRequestError("It has 9 tokens.", code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    status, body, _ = raised_answer(scope("/v1/messages"), error)
    told = json.loads(body)["error"]
    assert (status, told["type"]) == (400, "invalid_request_error")
    assert told["message"] == "prompt is too long: It has 9 tokens."
    assert told["details"]["error_code"] == "context_length_exceeded"


def test_a_thread_is_refused_in_words_on_which_their_runner_of_tools_goes_on() -> None:
    error = UnsupportedFieldError("No threads.", param="thread")
    status, body, _ = raised_answer(scope("/v1/messages"), error)
    details = json.loads(body)["error"]["details"]
    assert (status, details["error_code"]) == (400, "thread_unsupported_request")
    assert details["unsupported"] == ["thread"]
    other = raised_answer(scope("/v1/messages"), UnsupportedFieldError("No.", param="container"))
    assert json.loads(other[1])["error"]["details"] == {"error_code": "unsupported_parameter"}


def test_which_paths_are_anthropics() -> None:
    version = (b"anthropic-version", b"2023-06-01")
    assert is_anthropic(scope("/v1/messages"))
    assert is_anthropic(scope("/v1/messages/count_tokens"))
    assert not is_anthropic(scope("/v1/messagesx"))
    assert not is_anthropic(scope("/v1/models"))
    for path in ("/v1/models", "/v1/files", "/v1/files/x/content"):
        assert not is_anthropic(scope(path))
        assert is_anthropic(scope(path, version) | {"route": "some"})
    # Where there is no route, whoever asks says whose words it reads.
    assert is_anthropic(scope("/v1/skills", version))
    assert not is_anthropic(scope("/v1/skills"))
    assert not is_anthropic(scope("/v1/responses", version) | {"route": "some"})


def test_limits_are_told_in_their_headers() -> None:
    limits = LimitState(
        limit_requests=9, remaining_requests=-1, reset_requests_s=1.5, limit_tokens=10
    )
    assert limit_headers(limits, 0.0) == {
        "anthropic-ratelimit-requests-limit": "9",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:00:02Z",
        "anthropic-ratelimit-tokens-limit": "10",
    }

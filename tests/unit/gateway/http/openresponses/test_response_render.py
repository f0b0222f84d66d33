"""Events to responses and their streams."""

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.errors import WorkerLostError
from gateway.http.bodies.parsers import RESPONSES, ParseContext
from gateway.http.openresponses.called_names import called_names
from gateway.http.openresponses.item_maker import ItemMaker
from gateway.http.openresponses.render import (
    ResponseCollector,
    ResponseHead,
    ResponseStreamRenderer,
)
from gateway.request.delivery.events import (
    ChoiceFinished,
    ContentText,
    GenerationEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from protocol.errors import ErrorCode, PenstockError
from protocol.wire.messages import TokenLogprob, TokenLogprobs, Usage

BODY = RESPONSES.parse(b'{"model": "m", "input": "x"}', ParseContext({})).body
assert BODY is not None
ECHO = BODY.echo_json
HEAD = ResponseHead("resp_1", 5, "m", ECHO, lambda: 7.5)
USAGE = Usage(prompt_tokens=30, completion_tokens=4, cached_tokens=10, reasoning_tokens=2)
END = ChoiceFinished(0, "stop", USAGE)
OPTIONS = AnswerOptions(custom_tools=frozenset({"run"}))
EVENTS: list[GenerationEvent] = [
    ReasoningText(0, "hm"),
    ReasoningText(0, "?"),
    ContentText(0, 'a"\n\u2028é😀'),
    ContentText(0, "b"),
    ToolCallStarted(0, 0, "call_1", "files__f"),
    ToolCallArguments(0, 0, '{"x": '),
    ToolCallArguments(0, 0, "1}"),
    ToolCallStarted(0, 1, "call_2", "run"),
    ToolCallArguments(0, 1, '{"input": "1 '),
    ToolCallArguments(0, 1, '+ 2"}'),
    ChoiceFinished(0, "tool_calls", USAGE),
]


def maker(options: AnswerOptions = OPTIONS, *, seals: bool = False) -> ItemMaker:
    spaces = {"files__f": ("files", "f"), "a__twice": ("a", "twice"), "b__twice": ("b", "twice")}
    names = called_names((*spaces, "run"), spaces, {})
    return ItemMaker("r", options, spaces, seals_reasoning=seals, hosted={}, names=names)


def whole(*events: GenerationEvent, **options: Any) -> dict[str, Any]:
    collector = ResponseCollector(HEAD, maker(**options))
    collector.add(events)
    found: dict[str, Any] = orjson.loads(collector.body(USAGE))
    return found


def parsed(sent: bytes) -> list[dict[str, Any]]:
    *events, done = sent.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    found = []
    for number, event in enumerate(events):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == number
    return found


def streamed(*events: GenerationEvent, **options: Any) -> list[dict[str, Any]]:
    renderer = ResponseStreamRenderer(HEAD, maker(**options))
    sent = b"".join(renderer.render([event]) for event in events)
    return parsed(sent + renderer.finish(USAGE))


def test_a_whole_response_is_one_that_openais_own_types_accept() -> None:
    response = whole(*EVENTS)
    Response.model_validate(response)
    assert response["status"] == "completed"
    assert (response["created_at"], response["completed_at"]) == (5, 7)
    reasoning, message, call, custom = response["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm?"}]
    assert message["content"][0]["text"] == 'a"\n\u2028é😀b'
    assert (call["name"], call["namespace"], call["arguments"]) == ("f", "files", '{"x": 1}')
    assert (call["type"], call["call_id"]) == ("function_call", "call_1")
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "run", "1 + 2")
    assert len({item["id"] for item in response["output"]}) == 4
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (30, 4, 34)


def test_a_stream_tells_item_after_item_and_openais_own_types_accept_each_event() -> None:
    events = streamed(*EVENTS)
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event)
    kinds = [event["type"].removeprefix("response.") for event in events]
    summary, text = "reasoning_summary_text", "output_text"
    arguments, custom = "function_call_arguments", "custom_tool_call_input"
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_summary_part.added"),
        *(f"{summary}.delta", f"{summary}.delta", f"{summary}.done"),
        *("reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *(f"{text}.delta", f"{text}.delta", f"{text}.done", "content_part.done"),
        *("output_item.done", "output_item.added"),
        *(f"{arguments}.delta", f"{arguments}.delta", f"{arguments}.done"),
        *("output_item.done", "output_item.added"),
        *(f"{custom}.delta", f"{custom}.delta", f"{custom}.done"),
        *("output_item.done", "completed"),
    ]


def test_the_last_event_has_the_whole_response() -> None:
    events = streamed(*EVENTS)
    assert events[-1]["response"] == whole(*EVENTS)
    done = [event["item"] for event in events if event["type"].endswith("output_item.done")]
    assert done == events[-1]["response"]["output"]


def test_deltas_join_to_what_is_done() -> None:
    events = streamed(*EVENTS)
    for kind in ("output_text", "reasoning_summary_text"):
        pieces = [e["delta"] for e in events if e["type"] == f"response.{kind}.delta"]
        (done,) = [e["text"] for e in events if e["type"] == f"response.{kind}.done"]
        assert "".join(pieces) == done


def test_reasoning_can_be_told_sealed() -> None:
    assert "encrypted_content" not in whole(*EVENTS)["output"][0]
    assert whole(*EVENTS, seals=True)["output"][0]["encrypted_content"]


def test_an_answer_that_was_cut_is_incomplete_and_so_is_its_last_item() -> None:
    end = ChoiceFinished(0, "length", USAGE)
    events = (ReasoningText(0, "hm"), ContentText(0, "x"), end)
    response = whole(*events)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    last = streamed(*events)[-1]
    assert (last["type"], last["response"]) == ("response.incomplete", response)


def test_a_response_without_output_is_whole() -> None:
    assert whole(END)["output"] == []
    assert [event["type"] for event in streamed(END)][-1] == "response.completed"


def test_log_probabilities_stand_beside_their_text() -> None:
    token = TokenLogprobs(chosen=TokenLogprob(token_id=1, logprob=-0.5, text="x", data=b"x"))
    options = AnswerOptions(num_top_logprobs=0)
    events = (ContentText(0, "x", (token,)), END)
    shown = whole(*events, options=options)["output"][0]["content"][0]["logprobs"]
    assert [one["logprob"] for one in shown] == [-0.5]
    deltas = [e for e in streamed(*events, options=options) if e["type"].endswith("text.delta")]
    assert deltas[0]["logprobs"] == shown


def test_a_late_failure_fails_the_response() -> None:
    renderer = ResponseStreamRenderer(HEAD, maker())
    error = WorkerLostError("gone")
    *_, told, failed = parsed(renderer.render([ContentText(0, "x")]) + renderer.fail(error))
    assert (told["type"], told["message"]) == ("error", "gone")
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["usage"] is None


def test_a_failure_says_in_openais_words_whose_it_was() -> None:
    codes: dict[str, set[ErrorCode]] = {}
    for code in ErrorCode:
        collector = ResponseCollector(HEAD, maker())
        failed = Response.model_validate_json(collector.fail(PenstockError("no", code=code)))
        assert failed.error is not None
        codes.setdefault(failed.error.code, set()).add(code)
    assert codes.keys() == {"rate_limit_exceeded", "invalid_prompt", "server_error"}
    limits = ("rate_limit_exceeded", "insufficient_quota", "budget_exceeded", "too_many_wrong_keys")
    assert codes["rate_limit_exceeded"] == {ErrorCode(limit) for limit in limits}
    assert {ErrorCode.CONTEXT_LENGTH_EXCEEDED, ErrorCode.PERMISSION_DENIED} < codes[
        "invalid_prompt"
    ]
    assert {ErrorCode.OVERLOADED, ErrorCode.DEADLINE_EXCEEDED} < codes["server_error"]


def test_a_failure_says_what_was_spent_until_then() -> None:
    head = replace(HEAD, spent=lambda: USAGE)
    told = parsed(ResponseStreamRenderer(head, maker()).fail(WorkerLostError("gone")))
    assert told[-1]["response"]["usage"] == whole(END)["usage"]
    collected = orjson.loads(ResponseCollector(head, maker()).fail(WorkerLostError("gone")))
    assert collected["usage"] == whole(END)["usage"]


@pytest.mark.parametrize(
    ("called", "name", "namespace"),
    [
        ("files__f", "f", "files"),
        ("f", "f", "files"),
        # Nobody knows which is meant; the client answers, as it does for a name that is made up.
        ("twice", "twice", None),
        ("other", "other", None),
    ],
)
def test_a_tool_is_meant_by_its_own_name_where_no_other_one_is_called_so(
    called: str, name: str, namespace: str | None
) -> None:
    item = whole(ToolCallStarted(0, 0, "call_1", called), END)["output"][0]
    assert (item["type"], item["name"]) == ("function_call", name)
    assert item.get("namespace") == namespace

"""The deprecated spelling of tools: what it becomes, and how answers speak it."""

import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.errors import InvalidRequestError
from gateway.http.bodies.convert import chat_job
from gateway.http.render.answer import ChatCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.stream import ChatStreamRenderer
from gateway.http.schemas.inference.chat import parse_chat_body
from gateway.http.schemas.tools.functions import places_of_functions, with_tools
from gateway.request.delivery.events import (
    ChoiceFinished,
    GenerationEvent,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import GenerationJob
from protocol.wire.messages import Usage

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
USER = {"role": "user", "content": "?"}
OPTIONS = AnswerOptions(names_functions=True)
HEAD = AnswerHead("chatcmpl-1", 0, "m", "fp_1")
EVENTS: list[GenerationEvent] = [
    ToolCallStarted(0, 0, "call_1", "f"),
    ToolCallArguments(0, 0, '{"x": '),
    ToolCallArguments(0, 0, "1}"),
    ChoiceFinished(0, "tool_calls", Usage(prompt_tokens=1, completion_tokens=1)),
]


def job(**fields: Any) -> tuple[GenerationJob, list[str]]:
    body = {"model": "m", "messages": [USER], **fields}
    request, raw, ignored = parse_chat_body(json.dumps(body).encode())
    return chat_job(request, raw), ignored


def test_functions_are_tools_and_their_choice_is_the_tools() -> None:
    made, ignored = job(functions=[FUNCTION], function_call="auto")
    assert json.loads(made.tools_json or "") == [{"type": "function", "function": FUNCTION}]
    assert (made.tool_choice, made.parallel_tool_calls) == ("auto", False)
    assert made.options.names_functions
    assert ignored == []
    assert job(functions=[FUNCTION], function_call="none")[0].tools_json is None
    named, _ = job(functions=[FUNCTION], function_call={"name": "f"})
    assert (named.tool_choice, named.tool_name) == ("named", "f")


class CountedList(list[Any]):
    """A list that counts how often it is walked."""

    num_walks = 0

    def __iter__(self) -> Iterator[Any]:
        self.num_walks += 1
        return super().__iter__()


def test_messages_are_looked_through_once_for_all_places_and_not_at_all_for_none() -> None:
    call = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    body = with_tools({"messages": [USER, call], "functions": [FUNCTION]})
    body["messages"] = CountedList(body["messages"])
    places = [f"messages[1].tool_calls[0].function.x{number}" for number in range(32)]
    told = places_of_functions([*places, "tools[0].function.z"], body)
    assert told == [
        *(f"messages[1].function_call.x{number}" for number in range(32)),
        "functions[0].z",
    ]
    assert body["messages"].num_walks == 1
    assert places_of_functions([], body) == []
    assert body["messages"].num_walks == 1


def test_without_functions_answers_speak_of_tools() -> None:
    tool = {"type": "function", "function": FUNCTION}
    assert not job(tools=[tool])[0].options.names_functions
    assert not job(functions=[], function_call="none")[0].options.names_functions


def test_calls_and_results_in_messages_get_ids_that_match() -> None:
    made, ignored = job(
        functions=[FUNCTION],
        messages=[
            USER,
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "sun"},
            {"role": "assistant", "content": "Sun.", "function_call": None},
            USER,
        ],
    )
    assert ignored == []
    messages = json.loads(made.prepares[0].messages_json or "")
    (call,) = messages[1]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": "{}"}
    assert (messages[2]["role"], messages[2]["tool_call_id"]) == ("tool", call["id"])
    assert (len(call["id"]), call["id"].isalnum()) == (9, True)
    assert "tool_calls" not in messages[3]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"functions": [FUNCTION], "tools": [{}]}, "functions", "contradicts `tools`"),
        ({"functions": [FUNCTION], "tool_choice": "auto"}, "functions", "contradicts"),
        ({"function_call": {"name": "f"}}, "function_call", "needs `functions`"),
        ({"functions": [FUNCTION], "function_call": "never"}, "function_call", "Invalid"),
        ({"functions": [FUNCTION], "function_call": {"name": "g"}}, "function_call", "no tool `g`"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name", "`functions[0].name`"),
        ({"functions": [1]}, "functions[0]", "`functions[0]`"),
        ({"functions": "f"}, "functions", "`functions`"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "function_call": {"name": "f", "arguments": ""},
                        "tool_calls": [1],
                    }
                ]
            },
            "messages[0].function_call",
            "contradicts",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f"}}]},
            "messages[0].function_call.arguments",
            "Missing",
        ),
    ],
)
def test_what_is_wrong_is_named_in_the_clients_words(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        job(**fields)
    assert caught.value.param == param
    assert words in caught.value.message


def test_an_answer_has_one_function_call() -> None:
    collector = ChatCollector(HEAD, 1, OPTIONS)
    collector.add(EVENTS)
    (choice,) = orjson.loads(collector.body(Usage(prompt_tokens=1, completion_tokens=1)))["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"x": 1}'}
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "function_call"


def test_a_stream_tells_name_and_arguments_of_the_function_call() -> None:
    text = ChatStreamRenderer(HEAD, OPTIONS).render(EVENTS).decode()
    choices = [
        orjson.loads(line.removeprefix("data: "))["choices"][0]
        for line in text.split("\n\n")
        if line
    ]
    calls = [one["delta"]["function_call"] for one in choices if "function_call" in one["delta"]]
    assert calls == [
        {"name": "f", "arguments": ""},
        {"arguments": '{"x": '},
        {"arguments": "1}"},
    ]
    assert choices[-1]["finish_reason"] == "function_call"
    assert "tool_calls" not in text

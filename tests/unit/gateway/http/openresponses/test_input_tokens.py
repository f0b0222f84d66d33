"""Counted is the prompt that the same fields would be answered from, or what would be refused."""

import json
from typing import Any, Final

import pytest

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.parsed_bodies import TokenizeBody
from gateway.http.bodies.parsers import (
    COUNT_TOKENS,
    INPUT_TOKENS,
    MESSAGES,
    RESPONSES,
    ParseContext,
)
from protocol.wire.messages import Prepare

CONTEXT: Final = ParseContext({})
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "string"}}}
F: Final = {"type": "function", "name": "f", "parameters": SCHEMA}
G: Final = {"type": "function", "name": "g", "parameters": SCHEMA}
WEATHER: Final = {"type": "mcp", "server_label": "weather"}
LISTED: Final[list[dict[str, Any]]] = [
    {
        "type": "mcp_list_tools",
        "server_label": "weather",
        "tools": [
            {"name": "now", "input_schema": SCHEMA},
            {"name": "then", "input_schema": SCHEMA},
        ],
    },
    {"role": "user", "content": "x"},
]


def counted(**fields: Any) -> TokenizeBody:
    found = INPUT_TOKENS.parse(json.dumps({"model": "m", "input": "x", **fields}).encode(), CONTEXT)
    assert found.body is not None
    return found.body


def answered(**fields: Any) -> Prepare:
    found = RESPONSES.parse(json.dumps({"model": "m", "input": "x", **fields}).encode(), CONTEXT)
    assert found.body is not None
    return found.body.job.prepares[0]


def tools_of(prompt: Prepare) -> list[str]:
    return [one["function"]["name"] for one in json.loads(prompt.tools_json or "[]")]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["f", "g"]),
        ("auto", ["f", "g"]),
        ("required", ["f", "g"]),
        ("none", []),
        ({"type": "function", "name": "g"}, ["f", "g"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [G]}, ["g"]),
        ({"type": "allowed_tools", "mode": "required", "tools": [G, F]}, ["f", "g"]),
    ],
)
def test_a_choice_of_tools_leaves_the_same_ones_in_the_prompt(
    choice: Any, names: list[str]
) -> None:
    fields = {"tools": [F, G], "tool_choice": choice, "reasoning": {"effort": "low"}}
    question, prompt = counted(**fields).message, answered(**fields)
    assert tools_of(question) == names
    for name in ("messages_json", "tools_json", "template_kwargs_json", "add_generation_prompt"):
        assert getattr(question, name) == getattr(prompt, name)
    assert question.kind == "count"


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": [F], "tool_choice": {"type": "function", "name": "h"}},
        {"tools": [F], "tool_choice": {"type": "allowed_tools", "mode": "odd", "tools": [F]}},
        {"tools": [{**WEATHER, "server_label": "a b"}]},
    ],
)
def test_what_would_be_refused_is_not_counted(fields: dict[str, Any]) -> None:
    params = []
    for ask in (counted, answered):
        with pytest.raises(InvalidRequestError) as caught:
            ask(**fields)
        params.append(caught.value.param)
    assert params[0] == params[1]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["f"]),
        ("required", ["f"]),
        (WEATHER, []),
        ({"type": "mcp"}, []),
        ({**WEATHER, "name": "now"}, ["f"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [WEATHER, F]}, ["f"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [WEATHER]}, []),
    ],
)
def test_tools_that_no_server_has_listed_yet_are_named_and_not_counted(
    choice: Any, names: list[str]
) -> None:
    answered(tools=[F, WEATHER], tool_choice=choice)  # it is taken
    body = counted(tools=[F, WEATHER], tool_choice=choice)
    assert tools_of(body.message) == names
    assert body.ignored == ["tools[1]"]


def test_a_choice_that_only_servers_can_fulfil_is_counted() -> None:
    assert tools_of(counted(tools=[WEATHER], tool_choice="required").message) == []


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["f", "weather__now", "weather__then"]),
        (WEATHER, ["weather__now", "weather__then"]),
        ({"type": "mcp"}, ["weather__now", "weather__then"]),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{**WEATHER, "name": "then"}, F]},
            ["f", "weather__then"],
        ),
    ],
)
def test_tools_that_the_context_lists_are_counted(choice: Any, names: list[str]) -> None:
    body = counted(input=LISTED, tools=[F, WEATHER], tool_choice=choice)
    assert tools_of(body.message) == names
    assert body.ignored == []


def test_a_count_needs_no_model() -> None:
    found = INPUT_TOKENS.parse(b'{"input": "x"}', CONTEXT)
    assert found.body is not None
    assert found.body.model is None


def test_where_tools_are_off_they_are_not_counted_either() -> None:
    context = ParseContext({}, has_tools=False)
    body = {"model": "m", "input": "x", "tools": [F]}
    with pytest.raises(UnsupportedFieldError):
        INPUT_TOKENS.parse(json.dumps(body).encode(), context)


@pytest.mark.parametrize("choice", [None, {"type": "none"}, {"type": "tool", "name": "f"}])
def test_anthropics_count_is_of_the_same_prompt_as_its_answer(choice: Any) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "so"}],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        **({} if choice is None else {"tool_choice": choice}),
    }
    question = COUNT_TOKENS.parse(json.dumps(body).encode(), CONTEXT).message
    prompt = MESSAGES.parse(json.dumps({**body, "max_tokens": 5}).encode(), CONTEXT).job.prepares[0]
    for name in ("messages_json", "tools_json", "template_kwargs_json", "continue_final_message"):
        assert getattr(question, name) == getattr(prompt, name)

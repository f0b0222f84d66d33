"""Structured outputs and enforced tool calls through the real processes."""

import json
import re
from typing import Any, Literal

import httpx
import jsonschema  # type: ignore[import-untyped]
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process

MODEL = "penstock-demo"
ASK: Any = [{"role": "user", "content": "Tell me something about Oslo."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
CITY_ARGUMENTS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> Any:
    function = {"name": name, "description": name, "parameters": CITY_ARGUMENTS, **more}
    return {"type": "function", "function": function}


def post(harness: Harness, path: str, /, key: Any = "any", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 200, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(
        f"{harness.url}{path}", json=body, headers=headers, timeout=120.0, trust_env=False
    )


def content(harness: Harness, **fields: Any) -> str:
    response = post(harness, "/v1/chat/completions", messages=ASK, **fields)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    found: str = choice["message"]["content"]
    return found


def client(harness: Harness) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{harness.url}/v1", api_key="none", max_retries=0)


class Answer(BaseModel):
    city: Literal["Oslo", "Bergen"]
    is_capital: bool


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_schema_is_followed_at_any_temperature(harness: Harness, temperature: float) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    text = content(harness, response_format=wanted, temperature=temperature, seed=3)
    jsonschema.validate(json.loads(text), PERSON)


def test_the_openai_sdk_parses_a_pydantic_model(harness: Harness) -> None:
    completion = client(harness).chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Answer, max_tokens=100
    )
    parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Answer)
    assert completion.choices[0].message.refusal is None


def test_the_openai_sdk_streams_a_pydantic_model(harness: Harness) -> None:
    with client(harness).chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Answer, max_tokens=100
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert isinstance(completion.choices[0].message.parsed, Answer)


def test_other_grammars_hold_for_chat_and_completions(harness: Harness) -> None:
    assert re.fullmatch("[a-z]{3}-[0-9]{2}", content(harness, guided_regex="[a-z]{3}-[0-9]{2}"))
    assert content(harness, guided_choice=["fjord", "tram"]) in ("fjord", "tram")
    lark = 'start: "<" X ">"\nX: /[0-9]{1,3}/\n'
    assert re.fullmatch("<[0-9]{1,3}>", content(harness, structured_outputs={"grammar": lark}))
    response = post(harness, "/v1/completions", prompt="Oslo is", guided_choice=["big", "small"])
    assert response.json()["choices"][0]["text"] in ("big", "small")


def test_max_tokens_cuts_a_prefix(harness: Harness) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    response = post(
        harness, "/v1/chat/completions", messages=ASK, response_format=wanted, max_tokens=3
    )
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert '{"name": "'.startswith(choice["message"]["content"][:10])


def test_log_probabilities_cover_every_constrained_token(harness: Harness) -> None:
    response = post(
        harness,
        "/v1/chat/completions",
        messages=ASK,
        guided_choice=["fjord"],
        logprobs=True,
        top_logprobs=2,
    )
    (choice,) = response.json()["choices"]
    assert choice["message"]["content"] == "fjord"
    assert "".join(token["token"] for token in choice["logprobs"]["content"]) == "fjord"
    assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(a"}, "guided_regex"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"not": {}}},
                }
            },
            "response_format",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_a_hopeless_grammar_is_a_400_before_the_first_byte(
    harness: Harness, stream: bool, fields: dict[str, Any], param: str
) -> None:
    response = post(harness, "/v1/chat/completions", messages=ASK, stream=stream, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_grammar", param)


def calls_of(harness: Harness, *, stream: bool, **fields: Any) -> tuple[list[tuple[str, str]], str]:
    """Names and arguments of the calls, and the finish reason."""
    tools = [tool("get_weather"), tool("get_news")]
    made = {"model": MODEL, "messages": ASK, "tools": tools, "max_tokens": 300, **fields}
    if not stream:
        choice = client(harness).chat.completions.create(**made).choices[0]
        calls = choice.message.tool_calls or []
        return [
            (call.function.name, call.function.arguments) for call in calls
        ], choice.finish_reason
    found: list[list[str]] = []
    reason = ""
    for chunk in client(harness).chat.completions.create(stream=True, **made):
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.function.name:
                found.append([delta.function.name, ""])
            found[delta.index][1] += delta.function.arguments or ""
        reason = chunk.choices[0].finish_reason or reason
    return [(name, arguments) for name, arguments in found], reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_required_and_named_choices_are_enforced(
    harness: Harness, stream: bool, temperature: float
) -> None:
    calls, reason = calls_of(
        harness, stream=stream, tool_choice="required", temperature=temperature, seed=5
    )
    assert calls
    assert reason == "tool_calls"
    choice = {"type": "function", "function": {"name": "get_news"}}
    named, reason = calls_of(
        harness, stream=stream, tool_choice=choice, temperature=temperature, seed=5
    )
    assert [name for name, _ in named] == ["get_news"]
    assert reason == "stop"
    for name, arguments in calls + named:
        assert name in ("get_weather", "get_news")
        jsonschema.validate(json.loads(arguments), CITY_ARGUMENTS)


def test_without_parallel_calls_there_is_one(harness: Harness) -> None:
    calls, _ = calls_of(
        harness,
        stream=False,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=1.5,
        seed=1,
    )
    assert len(calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_auto_with_strict_tools_calls_by_the_schema(harness: Harness, stream: bool) -> None:
    question = [{"role": "user", "content": "What is the weather in Oslo?"}]
    calls, reason = calls_of(
        harness, stream=stream, messages=question, tools=[tool("get_weather", strict=True)]
    )
    assert reason == "tool_calls"
    for name, arguments in calls:
        assert name == "get_weather"
        jsonschema.validate(json.loads(arguments), CITY_ARGUMENTS)


def test_a_call_that_is_cut_ends_with_length(harness: Harness) -> None:
    _, reason = calls_of(harness, stream=False, tool_choice="required", max_tokens=12)
    assert reason == "length"


def test_constrained_and_free_answers_share_the_engine(harness: Harness) -> None:
    response = post(
        harness,
        "/v1/completions",
        prompt=["Oslo is"] * 4,
        n=2,
        guided_choice=["big", "small"],
        temperature=1,
    )
    texts = [choice["text"] for choice in response.json()["choices"]]
    assert len(texts) == 8
    assert set(texts) <= {"big", "small"}


TAGS = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 4},
            "uniqueItems": True,
            "maxItems": 2,
        }
    },
    "required": ["tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("is_streaming", [False, True])
def test_what_is_left_to_the_model_is_named_in_a_header(
    harness: Harness, is_streaming: bool
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "tags", "schema": TAGS}}
    response = post(
        harness, "/v1/chat/completions", messages=ASK, response_format=wanted, stream=is_streaming
    )
    assert response.status_code == 200, response.text
    assert response.headers["X-Penstock-Unenforced"] == "/properties/tags/uniqueItems"
    wanted["json_schema"]["strict"] = True  # type: ignore[index]
    response = post(
        harness, "/v1/chat/completions", messages=ASK, response_format=wanted, stream=is_streaming
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "unsupported_grammar"
    assert error["param"] == "response_format"
    assert error["message"].startswith("`uniqueItems` at /properties/tags/uniqueItems can't be")


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_strict_tool_asks_for_all_of_its_schema(harness: Harness, is_strict: bool) -> None:
    function = {"name": "tag", "parameters": TAGS, "strict": is_strict}
    response = post(
        harness,
        "/v1/chat/completions",
        messages=ASK,
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
    )
    assert response.status_code == (400 if is_strict else 200), response.text
    assert ("X-Penstock-Unenforced" in response.headers) is not is_strict


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_format_that_spells_calls_as_text_names_what_it_leaves_to_the_model(
    locked: Harness, is_streaming: bool
) -> None:
    key = (locked.data_dir / "admin.key").read_text(encoding="utf-8").strip()
    function: dict[str, Any] = {"name": "tag", "parameters": TAGS}
    asked: dict[str, Any] = {
        "messages": ASK,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "stream": is_streaming,
    }
    response = post(locked, "/v1/chat/completions", key, **asked)
    assert response.status_code == 200, response.text
    assert response.headers["X-Penstock-Unenforced"] == "/properties/tags/uniqueItems"
    function["strict"] = True
    response = post(locked, "/v1/chat/completions", key, **asked)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_grammar", "tools")
    assert "uniqueItems" in error["message"]


@pytest.mark.parametrize("text", ["<|im_end|>", "<tool_call>"])
def test_a_choice_that_spells_a_special_token_is_that_text(harness: Harness, text: str) -> None:
    body = {"prompt": "x", "guided_choice": [text]}
    response = post(harness, "/v1/completions", **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")

"""Formats, parsing and functions with the real processes and the bundled model."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


def test_all_formats_are_listed_with_the_model_that_uses_one(harness: Harness) -> None:
    listed = httpx.get(f"{harness.url}/v1/tools", trust_env=False).json()
    assert {"hermes", "glm-4.5", "openai", "none"} <= set(listed["tool_formats"])
    assert {"think", "deepseek_r1"} <= set(listed["reasoning_formats"])
    (model,) = listed["models"]
    assert (model["id"], model["tool_format"]) == ("penstock-demo", "hermes")
    answer = httpx.post(
        f"{harness.url}/v1/tools/execute", json={"name": "get_weather"}, trust_env=False
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_implemented")


def test_a_text_of_another_family_is_parsed(harness: Harness) -> None:
    text = (
        "<think>hm</think>Well.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Paris</arg_value>\n</tool_call>"
    )
    body = {
        "text": text,
        "format": "glm-4.5",
        "reasoning_format": "glm-4.5",
        "tools": [{"type": "function", "function": WEATHER}],
    }
    parsed = httpx.post(f"{harness.url}/v1/parse", json=body, trust_env=False).json()
    assert (parsed["content"], parsed["reasoning"]) == ("Well.", "hm")
    (call,) = parsed["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_a_tool_whose_schema_is_none_is_refused_by_name(client: Any) -> None:
    wrong = {**WEATHER, "parameters": {"type": "object", "properties": {"city": {"type": "str"}}}}
    with pytest.raises(openai.BadRequestError, match="get_weather") as caught:
        client.chat.completions.create(
            model="penstock-demo",
            messages=[QUESTION],
            tools=[{"type": "function", "function": wrong}],
        )
    assert caught.value.param == "tools[0].function.parameters"


def test_functions_are_called_and_told_in_their_older_spelling(client: Any) -> None:
    asked = {"model": "penstock-demo", "temperature": 0, "functions": [WEATHER]}
    whole = client.chat.completions.create(messages=[QUESTION], **asked)
    choice = whole.choices[0]
    assert choice.finish_reason == "function_call"
    call = choice.message.function_call
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    chunks = list(client.chat.completions.create(messages=[QUESTION], stream=True, **asked))
    deltas = [
        delta.function_call for chunk in chunks if (delta := chunk.choices[0].delta).function_call
    ]
    assert deltas[0].name == "get_weather"
    assert "".join(delta.arguments for delta in deltas) == call.arguments
    assert chunks[-1].choices[0].finish_reason == "function_call"
    history = [
        QUESTION,
        {"role": "assistant", "content": None, "function_call": call.model_dump()},
        {"role": "function", "name": "get_weather", "content": '{"weather": "sunny"}'},
    ]
    again = client.chat.completions.create(messages=history, max_tokens=40, **asked)
    assert again.choices[0].finish_reason in ("stop", "length")
    assert again.choices[0].message.content

"""The main job with the real `openai` package against the real processes."""

import json
import re
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.harness import Harness

pytestmark = pytest.mark.process

MODEL = "penstock-demo"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_small_sum_is_answered_with_usage(client: Any) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=ask("What is 12 + 30?"), temperature=0
    )
    choice = completion.choices[0]
    assert "42" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0
    total = completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.total_tokens == total


def test_a_stream_spells_the_same_text_as_one_body(client: Any) -> None:
    question = ask("Count from 1 to 5.")
    whole = client.chat.completions.create(model=MODEL, messages=question, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=question,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len(chunks) > 3  # the role, a first token, what came in gusts of 20 ms, and the usage


def test_a_tool_call_makes_the_round_trip(client: Any) -> None:
    messages: list[dict[str, object]] = [*ask("What is the weather in Paris?")]  # type: ignore[list-item]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0
    )
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages.append(choice.message.model_dump(exclude_none=True))
    result = '{"temperature": 18, "condition": "sunny"}'
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0
    )
    assert second.choices[0].finish_reason == "stop"
    assert "18" in (second.choices[0].message.content or "")


def test_a_streamed_tool_call_joins_to_the_same_call(client: Any) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ask("What is the weather in Tokyo?"),
        tools=[WEATHER],
        temperature=0,
        stream=True,
    )
    deltas = [call for c in stream if c.choices for call in c.choices[0].delta.tool_calls or []]
    assert [d.function.name for d in deltas if d.function and d.function.name] == ["get_weather"]
    assert len([d.id for d in deltas if d.id]) == 1
    arguments = "".join(d.function.arguments or "" for d in deltas if d.function)
    assert json.loads(arguments) == {"city": "Tokyo"}


def test_a_custom_tool_is_called_with_a_text_that_its_regular_expression_allows(
    client: Any,
) -> None:
    grammar = {"syntax": "regex", "definition": r"SELECT [a-z]{1,9} FROM \"[a-z]{1,9}\";"}
    tool = {
        "type": "custom",
        "custom": {"name": "query", "format": {"type": "grammar", "grammar": grammar}},
    }
    wanted = {
        "model": MODEL,
        "messages": ask("Which users are there?"),
        "tools": [tool],
        "tool_choice": {"type": "custom", "custom": {"name": "query"}},
        "temperature": 0,
    }
    message = client.chat.completions.create(**wanted).choices[0].message
    (call,) = message.tool_calls
    assert (call.type, call.custom.name) == ("custom", "query")
    assert re.fullmatch(grammar["definition"], call.custom.input)
    stream = client.chat.completions.create(**wanted, stream=True)
    deltas = [one for c in stream if c.choices for one in c.choices[0].delta.tool_calls or []]
    assert "".join(one.custom["input"] for one in deltas) == call.custom.input
    history = [
        *ask("Which users are there?"),
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Ada"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=history, tools=[tool], temperature=0, max_tokens=40
    )
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_a_stop_string_ends_the_text_before_it(client: Any) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=ask("Count from 1 to 5."), temperature=0, stop=["3"]
    )
    text = completion.choices[0].message.content or ""
    assert "2" in text
    assert "3" not in text
    assert completion.choices[0].finish_reason == "stop"


def test_max_tokens_ends_with_length(client: Any) -> None:
    completion = client.chat.completions.create(
        model=MODEL, messages=ask("Count from 1 to 20."), temperature=0, max_tokens=3
    )
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


def test_n_choices_differ_and_a_seed_repeats_them(client: Any) -> None:
    def draw() -> list[str | None]:
        completion = client.chat.completions.create(
            model=MODEL,
            messages=ask("Hello!"),
            n=4,
            seed=7,
            temperature=2.0,
            max_tokens=12,
        )
        assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in completion.choices]

    first = draw()
    assert len(set(first)) > 1
    assert draw() == first


def test_a_plain_completion_and_its_stream_agree(client: Any) -> None:
    whole = client.completions.create(model=MODEL, prompt="1 2 3", temperature=0, max_tokens=8)
    stream = client.completions.create(
        model=MODEL, prompt="1 2 3", temperature=0, max_tokens=8, stream=True
    )
    assert "".join(c.choices[0].text for c in stream if c.choices) == whole.choices[0].text


def test_the_models_are_listed_and_shown(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    card = client.models.retrieve(MODEL).model_dump()
    assert card["id"] == MODEL
    assert card["tool_format"] == "hermes"
    assert "<tool_call>" in card["format_evidence"]
    compute = card["compute"]
    assert compute["backend"].split()[0] in {"xla", "cpu_native"}
    assert compute["weights"] == card["dtype"]
    assert compute["stored_as"] is None
    assert [place["block"] for place in compute["blocks"]] == [
        "embedding",
        "attention",
        "mlp",
        "head",
    ]
    assert card["quality"] is None


def test_an_unknown_model_is_a_404_that_lists_the_known_ones(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as info:
        client.chat.completions.create(model="gpt-nothing", messages=ask("Hi"))
    assert info.value.code == "model_not_found"
    assert info.value.param == "model"


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2048 tokens.*\d{4} ") as info:
        client.chat.completions.create(model=MODEL, messages=ask("word " * 4000))
    assert info.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(
    harness: Harness, change: dict[str, object], param: str
) -> None:
    body = {"model": MODEL, "messages": ask("Hi"), **change}
    response = httpx.post(f"{harness.url}/v1/chat/completions", json=body, trust_env=False)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b'{"temperature": NaN}', b"[]", b'{"a":' * 5000],
)
def test_a_broken_body_is_a_400_in_openai_shape(harness: Harness, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(
        f"{harness.url}/v1/chat/completions", content=content, headers=headers, trust_env=False
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_huge_body_is_a_413(harness: Harness) -> None:
    body = json.dumps({"model": MODEL, "messages": ask("x" * 11_000_000)})
    headers = {"Content-Type": "application/json"}
    response = httpx.post(
        f"{harness.url}/v1/chat/completions", content=body, headers=headers, trust_env=False
    )
    assert response.status_code == 413
    assert response.json()["error"]["message"]


def test_unknown_fields_are_ignored_and_listed(harness: Harness) -> None:
    body = {"model": MODEL, "messages": ask("Hello!"), "max_tokens": 2, "flavour": "mint"}
    response = httpx.post(f"{harness.url}/v1/chat/completions", json=body, trust_env=False)
    assert response.status_code == 200
    assert response.headers["x-penstock-ignored-fields"] == "flavour"


def test_web_pages_can_not_reach_in(harness: Harness) -> None:
    body = json.dumps({"model": MODEL, "messages": ask("Hi")})
    url = f"{harness.url}/v1/chat/completions"
    as_text = httpx.post(url, content=body, headers={"Content-Type": "text/plain"}, trust_env=False)
    assert as_text.status_code in (400, 415)
    rebound = httpx.post(
        url,
        content=body,
        headers={"Content-Type": "application/json", "Host": "evil.example"},
        trust_env=False,
    )
    assert rebound.status_code in (400, 403, 421)


def test_eight_streams_share_the_engine(harness: Harness) -> None:
    import concurrent.futures

    def text(number: int) -> str:
        completion = harness.client().chat.completions.create(
            model=MODEL, messages=ask(f"What is {number} + 30?"), temperature=0
        )
        return completion.choices[0].message.content or ""

    alone = [text(number) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(text, range(8)))
    assert together == alone

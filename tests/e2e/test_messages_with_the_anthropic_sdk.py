"""Anthropic's own client against a whole server: answers, streams, tools, counts, errors."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import Harness
from tests.fakes.late import anthropic

MODEL = "penstock-demo"
SUM: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
GREEDY = {"temperature": 0}


@pytest.fixture
def claude(harness: Harness) -> Iterator[Any]:
    """An unmodified client without retries of its own."""
    with anthropic.Anthropic(base_url=harness.url, api_key="any", max_retries=0) as client:
        yield client


def test_an_answer_its_stream_and_its_count_agree(claude: Any) -> None:
    whole = claude.messages.create(model=MODEL, max_tokens=40, messages=SUM, extra_body=GREEDY)
    assert whole.stop_reason == "end_turn"
    (block,) = whole.content
    assert block.type == "text"
    assert "5" in block.text
    with claude.messages.stream(
        model=MODEL, max_tokens=40, messages=SUM, extra_body=GREEDY
    ) as stream:
        final = stream.get_final_message()
    assert [one.type for one in final.content] == ["text"]
    assert getattr(final.content[0], "text", "") == block.text
    counted = claude.messages.count_tokens(model=MODEL, messages=SUM)
    usage = final.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_tool_makes_the_round_trip(claude: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    wanted: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 100,
        "tools": [WEATHER],
        "extra_body": GREEDY,
    }
    with claude.messages.stream(messages=messages, **wanted) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": '{"temperature": 18, "condition": "sunny"}',
    }
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = claude.messages.create(messages=messages, **wanted)
    assert second.stop_reason == "end_turn"
    assert "18" in getattr(second.content[0], "text", "")


def test_their_runner_of_tools_runs_what_the_model_calls(claude: Any) -> None:
    ran: list[str] = []

    def get_weather(city: str) -> str:
        """Get the weather of a city.

        Args:
            city: Its name.
        """
        ran.append(city)
        return '{"temperature": 18, "condition": "sunny"}'

    runner = claude.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        tools=[anthropic.beta_tool(get_weather)],
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        max_iterations=2,
    )
    reasons = [message.stop_reason for message in runner]
    assert (reasons[0], len(reasons), ran) == ("tool_use", 2, ["Paris"])


def test_a_schema_holds_the_text(claude: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    message = claude.messages.create(
        model=MODEL,
        max_tokens=40,
        messages=SUM,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert getattr(message.content[0], "text", "")[:5] == '{"n":'


def test_reading_only_fills_the_cache(claude: Any) -> None:
    text = "Remember this: " + "one two three four five. " * 40
    messages: list[Any] = [{"role": "user", "content": text}]
    read = claude.messages.create(model=MODEL, max_tokens=0, messages=messages)
    assert (read.content, read.usage.output_tokens) == ([], 0)
    again = claude.messages.create(model=MODEL, max_tokens=1, messages=messages)
    assert (again.usage.cache_read_input_tokens or 0) > 0


def test_models_are_listed_in_their_shape(claude: Any) -> None:
    assert [model.id for model in claude.models.list()] == [MODEL]
    assert [model.id for model in claude.models.list(lifecycle=["active", "retired"])] == [MODEL]
    assert list(claude.models.list(lifecycle=["retired"])) == []
    assert claude.models.retrieve(MODEL).type == "model"
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("no-such-model")


def test_errors_are_those_that_their_client_knows(claude: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="no-such-model", max_tokens=1, messages=SUM)
    assert missing.value.request_id
    asked: Any = {"model": MODEL, "max_tokens": 1, "messages": SUM}
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.batches.create(requests=[{"custom_id": "a", "params": asked}])
    picture: list[Any] = [{"role": "user", "content": [{"type": "image", "source": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="image"):
        claude.messages.create(model=MODEL, max_tokens=1, messages=picture)

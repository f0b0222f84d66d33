"""The Responses API through OpenAI's own client: answers, streams, tools, schemas, errors."""

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

MODEL = "penstock-demo"
SUM = "What is 2 + 3?"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Digit(BaseModel):
    """What the text must be."""

    n: int


def test_an_answer_its_stream_and_its_count_agree(client: Any) -> None:
    whole = client.responses.create(model=MODEL, input=SUM, temperature=0, store=False)
    assert (whole.status, whole.store) == ("completed", False)
    assert "5" in whole.output_text
    with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    counted = client.responses.input_tokens.count(model=MODEL, input=SUM)
    assert counted.input_tokens == whole.usage.input_tokens


def test_a_function_makes_the_round_trip(client: Any) -> None:
    items: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    wanted = {"model": MODEL, "tools": [WEATHER], "temperature": 0}
    with client.responses.stream(input=items, **wanted) as stream:
        for _ in stream:
            pass
        first = stream.get_final_response()
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    items += [item.model_dump(exclude_none=True) for item in first.output]
    result = '{"temperature": 18, "condition": "sunny"}'
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
    assert "18" in client.responses.create(input=items, **wanted).output_text


def test_a_schema_holds_the_text(client: Any) -> None:
    parsed = client.responses.parse(model=MODEL, input=SUM, text_format=Digit, temperature=0)
    assert isinstance(parsed.output_parsed, Digit)


def test_an_answer_that_is_cut_says_so(client: Any) -> None:
    cut = client.responses.create(model=MODEL, input="Count to twenty.", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_what_is_stored_elsewhere_is_refused_by_name(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input=SUM, previous_response_id="resp_1")

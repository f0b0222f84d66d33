"""The Responses API through OpenAI's own client: answers, streams, tools, schemas, errors."""

import json
from typing import Any

import openai
import pytest
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel

from tests.fakes.client_requests import APPLY_PATCH_LARK

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
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    # The client asks for all events again, and passes on those behind a number.
    with client.responses.stream(response_id=final.id, starting_after=3) as stream:
        assert list(stream) == events[4:]
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


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_runner_of_tools_takes_each_item(client: Any, stream: bool) -> None:
    """It compares the items of a stream with those of its end, and replays them as they are."""
    asked: list[Any] = []

    def weather(arguments: dict[str, object]) -> str:
        asked.append(arguments)
        return '{"temperature": 18, "condition": "sunny"}'

    runner = ResponsesToolRunner(functions=[RegisteredFunction(WEATHER, weather)])
    wanted: Any = {"model": MODEL, "input": "What is the weather in Paris?", "temperature": 0}
    found = runner.run(client, wanted, stream=stream, eager=stream)
    assert asked == [{"city": "Paris"}]
    assert "18" in found.output_text


def test_a_schema_holds_the_text(client: Any) -> None:
    parsed = client.responses.parse(model=MODEL, input=SUM, text_format=Digit, temperature=0)
    assert isinstance(parsed.output_parsed, Digit)


def test_an_answer_that_is_cut_says_so(client: Any) -> None:
    cut = client.responses.create(model=MODEL, input="Count to twenty.", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_stored_response_is_continued_fetched_and_deleted(client: Any) -> None:
    first = client.responses.create(model=MODEL, input=SUM, temperature=0)
    assert first.store is True
    second = client.responses.create(
        model=MODEL, input="Why?", previous_response_id=first.id, temperature=0
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id) == first
    (item,) = client.responses.input_items.list(first.id).data
    assert item.content[0].text == SUM
    with client.responses.retrieve(first.id, stream=True, starting_after=1) as stream:
        events = list(stream)
    assert next(event.sequence_number for event in events) == 2
    assert events[-1].response == first
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", previous_response_id=second.id)
    assert caught.value.code == "previous_response_not_found"


def test_a_conversation_is_written_by_responses(client: Any) -> None:
    items: list[Any] = [{"type": "message", "role": "user", "content": "My name is Ada."}]
    conversation = client.conversations.create(items=items, metadata={"topic": "names"})
    made = client.responses.create(
        model=MODEL, input=SUM, conversation=conversation.id, temperature=0
    )
    assert made.conversation.id == conversation.id
    listed = list(client.conversations.items.list(conversation.id, order="asc", limit=1))
    assert [item.role for item in listed] == ["user", "user", "assistant"]
    assert listed[-1].content[0].text == made.output_text
    one = client.conversations.items.retrieve(listed[0].id, conversation_id=conversation.id)
    assert one == listed[0]
    client.conversations.items.delete(listed[0].id, conversation_id=conversation.id)
    more = client.conversations.items.create(conversation.id, items=items)
    assert len(more.data) == 1
    renamed = client.conversations.update(conversation.id, metadata={"topic": "sums"})
    assert client.conversations.retrieve(conversation.id) == renamed
    assert client.conversations.delete(conversation.id).deleted is True


def test_a_background_response_is_polled_streamed_and_cancelled(client: Any) -> None:
    known = client.responses.create(model=MODEL, input=SUM, temperature=0)
    made = client.responses.create(model=MODEL, input=SUM, temperature=0, background=True)
    assert made.status == "queued"
    with client.responses.retrieve(made.id, stream=True) as stream:
        events = list(stream)
    assert [event.type for event in events][:3] == [
        *("response.created", "response.queued", "response.in_progress"),
    ]
    ended = client.responses.retrieve(made.id)
    assert (ended.status, ended.output_text) == ("completed", known.output_text)
    streamed = client.responses.create(
        model=MODEL, input=SUM, temperature=0, background=True, stream=True
    )
    assert list(streamed)[-1].response.output_text == known.output_text
    long = client.responses.create(
        model=MODEL, input="Count to a thousand.", background=True, text=_LONG
    )
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


_LONG: Any = {
    "format": {
        "type": "json_schema",
        "name": "numbers",
        "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 200},
    }
}


def test_a_context_is_compacted(client: Any) -> None:
    items: list[Any] = [
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "Thank you."},
    ]
    compacted = client.responses.compact(model=MODEL, input=items)
    assert compacted.object == "response.compaction"
    assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
    kept = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
    again = client.responses.create(
        model=MODEL, input=[*kept, {"role": "user", "content": SUM}], temperature=0
    )
    assert again.status in ("completed", "incomplete")


def test_a_websocket_answers_turns_and_remembers_the_last(client: Any) -> None:
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input=SUM, temperature=0, store=False)
        first = _last(connection)
        connection.response.create(
            model=MODEL, input="Why?", previous_response_id=first.id, store=False
        )
        second = _last(connection)
        assert second.usage.input_tokens > first.usage.input_tokens
    with client.responses.connect() as connection:
        connection.response.create(model=MODEL, input="x", previous_response_id=second.id)
        event = next(iter(connection))
        assert (event.type, event.error.code) == ("error", "previous_response_not_found")


def _last(connection: Any) -> Any:
    for event in connection:
        if event.type == "response.completed":
            return event.response
    raise AssertionError("it never ended")


def test_a_patch_is_held_to_the_grammar_of_codex(client: Any) -> None:
    response = client.responses.create(
        model=MODEL,
        input="Add a file.",
        tools=[
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": APPLY_PATCH_LARK},
            }
        ],
        tool_choice={"type": "custom", "name": "apply_patch"},
        max_output_tokens=60,
    )
    call = response.output[-1]
    assert (call.type, call.name) == ("custom_tool_call", "apply_patch")
    assert call.input.startswith("*** Begin Patch\n*** ")


def test_an_input_follows_rules_that_contain_themselves(client: Any) -> None:
    """Brackets that close, with white space that the grammar ignores; no expression says that."""
    definition = 'start: "[" (start ("," start)?)? "]"\n%ignore /[ \\n]/'
    grammar = {"type": "grammar", "syntax": "lark", "definition": definition}
    response = client.responses.create(
        model=MODEL,
        input="Brackets.",
        tools=[{"type": "custom", "name": "brackets", "format": grammar}],
        tool_choice={"type": "custom", "name": "brackets"},
        max_output_tokens=60,
    )
    call = response.output[-1]
    assert (call.type, call.name) == ("custom_tool_call", "brackets")
    # Whole or cut, each `]` has its `[`, and nothing comes behind the last one.
    depth = 0
    bare = "".join(call.input.split())
    for index, character in enumerate(bare):
        assert character in "[],"
        assert depth or index == 0, bare
        depth += {"[": 1, "]": -1, ",": 0}[character]
    assert bare.startswith("[")
    assert (depth == 0) is (response.status == "completed")

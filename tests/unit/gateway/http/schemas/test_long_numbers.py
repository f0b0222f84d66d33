"""Numbers that no float holds reach the workers with every digit, in schemas and in arguments."""

from typing import Any, Final

import orjson
import pytest

from gateway.errors import InvalidRequestError
from gateway.http.bodies.parsers import (
    CHAT,
    COMPLETION,
    CONTINUED_RESPONSES,
    CONVERSATION,
    DECISION,
    EXECUTE,
    MESSAGES,
    RESPONSES,
    SOCKET,
    SYSTEMONE,
    BodyKind,
)
from gateway.http.openresponses.stored_items import framed
from tests.fakes.sample_bodies import CONTEXT

INTEGER: Final = b"123456789012345678901234567890"
FRACTION: Final = b"0.1000000000000000055"
SCHEMA: Final = {
    "type": "object",
    "properties": {"a": {"enum": [orjson.Fragment(INTEGER), orjson.Fragment(FRACTION)]}},
}
WRITTEN: Final = orjson.dumps(SCHEMA).decode()
FUNCTION: Final = {"name": "f", "parameters": SCHEMA, "strict": True}
NAMED: Final = {"name": "s", "schema": SCHEMA}
ASK: Final = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
PROMPT: Final = {"model": "m", "prompt": "x"}
INPUT: Final = {"model": "m", "input": "x"}


def parsed(kind: BodyKind[Any], body: dict[str, Any]) -> Any:
    found = kind.parse(orjson.dumps(body), CONTEXT)
    return found.asked.body if kind is SOCKET else getattr(found, "body", found)


CONTENT: Final = [
    (CHAT, ASK, {"response_format": {"type": "json_schema", "json_schema": NAMED}}),
    (CHAT, ASK, {"response_format": {"type": "json_object", "schema": SCHEMA}}),
    (CHAT, ASK, {"guided_json": SCHEMA}),
    (COMPLETION, PROMPT, {"structured_outputs": {"json": SCHEMA}}),
    (RESPONSES, INPUT, {"text": {"format": {"type": "json_schema", **NAMED}}}),
    (
        SOCKET,
        INPUT | {"type": "response.create"},
        {"text": {"format": {"type": "json_schema", **NAMED}}},
    ),
    (MESSAGES, ASK, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    (MESSAGES, ASK, {"output_format": {"type": "json_schema", "schema": SCHEMA}}),
]


@pytest.mark.parametrize(("kind", "body", "fields"), CONTENT)
def test_a_schema_of_the_content_keeps_every_digit(
    kind: BodyKind[Any], body: dict[str, Any], fields: dict[str, Any]
) -> None:
    grammar = parsed(kind, body | fields).job.response_grammar
    assert grammar.source == WRITTEN


TOOLS: Final = [
    (CHAT, ASK, {"tools": [{"type": "function", "function": FUNCTION}]}),
    (CHAT, ASK, {"functions": [FUNCTION]}),
    (RESPONSES, INPUT, {"tools": [{"type": "function", **FUNCTION}]}),
    (MESSAGES, ASK, {"tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}]}),
]


@pytest.mark.parametrize(("kind", "body", "fields"), TOOLS)
def test_a_schema_of_a_tool_keeps_every_digit(
    kind: BodyKind[Any], body: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert WRITTEN in parsed(kind, body | fields).job.tools_json


def test_an_answer_repeats_the_schemas_with_every_digit() -> None:
    fields = {"tools": [{"type": "function", **FUNCTION}]}
    assert WRITTEN in parsed(RESPONSES, INPUT | fields).echo_json


def test_arguments_of_a_history_keep_every_digit() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": orjson.Fragment(INTEGER)}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    turns = [
        *ASK["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    (prepare,) = parsed(MESSAGES, ASK | {"messages": turns}).job.prepares
    assert INTEGER.decode() in prepare.messages_json


def test_arguments_of_a_chats_history_keep_every_digit() -> None:
    function = {"name": "f", "arguments": {"a": orjson.Fragment(INTEGER)}}
    call = {"id": "c", "type": "function", "function": function}
    turns = [
        *ASK["messages"],  # type: ignore[misc]
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    (prepare,) = parsed(CHAT, ASK | {"messages": turns}).job.prepares
    assert INTEGER.decode() in prepare.messages_json


LISTED: Final = {
    "type": "mcp_list_tools",
    "server_label": "s",
    "tools": [{"name": "f", "input_schema": SCHEMA}],
}


def test_a_list_of_tools_in_the_input_keeps_every_digit() -> None:
    input_items = [LISTED, {"role": "user", "content": "x"}]
    found = RESPONSES.parse(orjson.dumps(INPUT | {"input": input_items}), CONTEXT)
    assert WRITTEN in found.input_json


def test_stored_items_keep_every_digit() -> None:
    assert WRITTEN in parsed(CONVERSATION, {"items": [LISTED]}).items_json
    tool = {"type": "mcp", "server_label": "s", "require_approval": "never"}
    body = orjson.dumps(INPUT | {"previous_response_id": "resp_1", "tools": [tool]})
    context = framed(body, orjson.dumps([LISTED]), {}, None)
    found = CONTINUED_RESPONSES.parse(context, CONTEXT).body
    assert found is not None
    assert WRITTEN in found.hosted.lists_json


@pytest.mark.parametrize("field", ["chat_template_kwargs", "documents"])
def test_what_templates_read_keeps_every_digit(field: str) -> None:
    value = {"title": orjson.Fragment(INTEGER)}
    body = ASK | {field: value if field == "chat_template_kwargs" else [value]}
    (prepare,) = parsed(CHAT, body).job.prepares
    assert INTEGER.decode() in prepare.template_kwargs_json


def test_what_is_judged_keeps_every_digit() -> None:
    value = {"a": orjson.Fragment(INTEGER)}
    written = f'{{"a":{INTEGER.decode()}}}'
    part = {"type": "input_json", "data": value}
    question = {"type": "predicate", "instructions": [part]}
    found = parsed(DECISION, {"model": "m", "input": "x", "questions": [question]}).message
    assert written in found.questions[0].text
    body = {"model": "m", "state": value, "questions": {"q": {"type": "noul", "instructions": "?"}}}
    shown = orjson.loads(parsed(SYSTEMONE, body).message.messages_json)
    assert written in shown[-1]["content"]


def test_arguments_of_a_tool_keep_every_digit() -> None:
    body = {"name": "f", "arguments": {"a": orjson.Fragment(INTEGER)}}
    assert parsed(EXECUTE, body).arguments_json == f'{{"a":{INTEGER.decode()}}}'
    text = f'{{\n"a":{FRACTION.decode()}}}'
    body = {"name": "f", "arguments": text}
    assert parsed(EXECUTE, body).arguments_json == text.replace("\n", " ")


@pytest.mark.parametrize(
    ("field", "param"), [("max_tokens", "max_tokens"), ("temperature", None), ("n", "n")]
)
def test_a_number_that_is_read_here_is_an_ordinary_one(field: str, param: str | None) -> None:
    body = ASK | {"guided_json": SCHEMA, field: orjson.Fragment(b"1.0000000000000000001")}
    if param is None:
        assert parsed(CHAT, body).job.response_grammar.source == WRITTEN
        return
    with pytest.raises(InvalidRequestError) as caught:
        parsed(CHAT, body)
    assert caught.value.param == param

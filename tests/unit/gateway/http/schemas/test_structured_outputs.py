import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.convert import chat_job, completion_job
from gateway.http.schemas.inference.chat import parse_chat_body
from gateway.http.schemas.inference.completion import parse_completion_body
from protocol.wire.messages import Grammar

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
BOTH = pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completions"])


def job(is_chat: bool = True, **fields: Any) -> Any:
    if not is_chat:
        body = json.dumps({"model": "m", "prompt": "x", **fields}).encode()
        return completion_job(parse_completion_body(body)[0])
    messages = [{"role": "user", "content": "hi"}]
    body = json.dumps({"model": "m", "messages": messages, **fields}).encode()
    request, raw, ignored = parse_chat_body(body)
    assert ignored == []
    return chat_job(request, raw)


def named(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}


@BOTH
@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"response_format": named(SCHEMA)}, "json_schema", SCHEMA),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            "json_object",
            "",
        ),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["x", "y"]}, "choice", ["x", "y"]),
        ({"guided_grammar": "start: X"}, "lark", "start: X"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"regex": "a", "json": None}}, "regex", "a"),
        ({"structured_outputs": {"choice": ["x"]}}, "choice", ["x"]),
        ({"structured_outputs": {"grammar": "start: X"}}, "lark", "start: X"),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ],
)
def test_each_spelling_becomes_a_grammar(
    is_chat: bool, fields: dict[str, Any], kind: str, source: Any
) -> None:
    made = job(is_chat, **fields)
    grammar = made.response_grammar
    assert isinstance(grammar, Grammar)
    assert grammar.kind == kind
    assert (grammar.source if isinstance(source, str) else json.loads(grammar.source)) == source
    assert made.grammar_param == next(iter(fields))


@BOTH
def test_free_json_may_have_a_schema_which_is_not_left_aside(is_chat: bool) -> None:
    made = job(is_chat, response_format={"type": "json_object", "schema": SCHEMA})
    assert made.response_grammar == Grammar(
        "json_schema", json.dumps(SCHEMA, separators=(",", ":"))
    )
    with pytest.raises(InvalidRequestError) as caught:
        job(is_chat, response_format={"type": "json_object", "schema": []})
    assert caught.value.param == "response_format.schema"


@BOTH
def test_only_a_strict_schema_is_held_to_all_of_itself(is_chat: bool) -> None:
    wanted = named(SCHEMA)
    assert job(is_chat, response_format=wanted).response_grammar.is_strict
    for strict in (False, None):
        wanted["json_schema"]["strict"] = strict
        assert not job(is_chat, response_format=wanted).response_grammar.is_strict
    assert not job(is_chat, guided_json=SCHEMA).response_grammar.is_strict


@BOTH
def test_a_schema_as_text_keeps_every_digit(is_chat: bool) -> None:
    text = '{"const": 123456789012345678901234567890.0100}'
    assert job(is_chat, guided_json=text).response_grammar.source == text


@BOTH
@pytest.mark.parametrize(
    "fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}]
)
def test_text_needs_no_grammar(is_chat: bool, fields: dict[str, Any]) -> None:
    assert job(is_chat, **fields).response_grammar is None


@BOTH
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": named([])}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "x": 1}}},
            "response_format.json_schema.x",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": 1}}},
            "response_format.json_schema.strict",
        ),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * 300_000}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice[1]"),
        ({"guided_grammar": ""}, "guided_grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"yaml": "a"}}, "structured_outputs.yaml"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a", "bad_words": ["b"]}, "bad_words"),
    ],
)
def test_what_makes_no_sense_is_named(is_chat: bool, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        job(is_chat, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "option",
    [{"structural_tag": "x"}, {"disable_any_whitespace": True}, {"whitespace_pattern": " "}],
)
def test_options_that_are_not_served_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        job(structured_outputs={"regex": "a", **option})
    assert caught.value.param == f"structured_outputs.{next(iter(option))}"


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ("required", "required", ""),
        ("auto", "auto", ""),
        (None, "auto", ""),
        ("none", "none", ""),
        ({"type": "function", "function": {"name": "f"}}, "named", "f"),
    ],
)
def test_tool_choices_reach_the_parser(choice: Any, mode: str, name: str) -> None:
    made = job(tools=[TOOL], tool_choice=choice)
    assert (made.tool_choice, made.tool_name) == (mode, name)


def test_strict_reaches_the_parser_and_not_the_prompt() -> None:
    made = job(tools=[TOOL])
    assert "strict" not in made.prepares[0].tools_json
    assert json.loads(made.enforced_tools_json)[0]["function"]["strict"] is True


def test_a_named_tool_must_be_there() -> None:
    choice = {"type": "function", "function": {"name": "g"}}
    with pytest.raises(InvalidRequestError, match="no tool `g`") as caught:
        job(tools=[TOOL], tool_choice=choice)
    assert caught.value.param == "tool_choice"


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_seen_and_called(mode: str) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    made = job(tools=tools, tool_choice=allowed(mode, "h", "f"))
    assert (made.tool_choice, made.tool_name) == (mode, "")
    for listed in (made.tools_json, made.prepares[0].tools_json, made.enforced_tools_json):
        assert [tool["function"]["name"] for tool in json.loads(listed)] == ["f", "h"]


def test_an_allowed_tool_must_be_there() -> None:
    with pytest.raises(InvalidRequestError, match="no tool `g`") as caught:
        job(tools=[TOOL], tool_choice=allowed("auto", "f", "g"))
    assert caught.value.param == "tool_choice"

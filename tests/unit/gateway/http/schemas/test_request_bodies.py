"""Request bodies: what is accepted, what is refused, and which field an error names."""

import json
import re
import resource
from typing import Any

import openai.types.chat as chat_types
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.schemas.administration.profile import ProfileRequest
from gateway.http.schemas.base.body import (
    MAX_PARTS,
    load_json_object,
    validate,
)
from gateway.http.schemas.base.fields import (
    CHAT_REFUSED_FIELDS,
    COMPLETION_REFUSED_FIELDS,
    HARMLESS_FIELDS,
)
from gateway.http.schemas.base.ranges import RANGES
from gateway.http.schemas.base.shapes import MAX_LISTED_FIELDS
from gateway.http.schemas.inference.chat import ChatRequest, parse_chat_body
from gateway.http.schemas.inference.completion import CompletionRequest, parse_completion_body
from gateway.http.schemas.inference.embedding import parse_embedding_body
from gateway.http.schemas.inference.messages import REFUSED_MESSAGE_FIELDS, ChatMessage
from gateway.http.schemas.tools.functions import FUNCTION_FIELDS

USER = {"role": "user", "content": "hi"}

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f"}}]
WRONG_ALLOWED_TOOLS: list[tuple[dict[str, Any], str]] = [
    ({}, "tool_choice.allowed_tools"),
    ({"allowed_tools": [1]}, "tool_choice.allowed_tools"),
    ({"allowed_tools": {"tools": TOOLS}}, "tool_choice.allowed_tools.mode"),
    (
        {"allowed_tools": {"mode": "none", "tools": TOOLS}},
        "tool_choice.allowed_tools.mode",
    ),
    ({"allowed_tools": {"mode": "auto"}}, "tool_choice.allowed_tools.tools"),
    (
        {"allowed_tools": {"mode": "auto", "tools": []}},
        "tool_choice.allowed_tools.tools",
    ),
    (
        {"allowed_tools": {"mode": "auto", "tools": [*TOOLS, {"type": "mcp"}]}},
        "tool_choice.allowed_tools.tools[1]",
    ),
    (
        {"allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}},
        "tool_choice.allowed_tools.tools[0].function.name",
    ),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG_ALLOWED_TOOLS)
def test_wrong_allowed_tools_are_named(wrong: dict[str, Any], param: str) -> None:
    body = chat_body(tools=TOOLS, tool_choice={"type": "allowed_tools", **wrong})
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_body(body)
    assert caught.value.param == param


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def completion_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "x", **fields}).encode()


def test_every_field_of_openais_chat_schema_is_honoured_harmless_or_refused() -> None:
    documented = set(chat_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert documented <= ChatRequest.known_fields | set(CHAT_REFUSED_FIELDS) | FUNCTION_FIELDS


def test_every_field_of_openais_completion_schema_is_honoured_harmless_or_refused() -> None:
    documented = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    known = CompletionRequest.known_fields | set(COMPLETION_REFUSED_FIELDS)
    assert documented | {"stream"} <= known


def test_no_field_is_both_honoured_and_refused() -> None:
    assert not ChatRequest.known_fields & set(CHAT_REFUSED_FIELDS)
    assert not CompletionRequest.known_fields & set(COMPLETION_REFUSED_FIELDS)
    assert set(HARMLESS_FIELDS) <= ChatRequest.known_fields


@pytest.mark.parametrize("name", sorted(CHAT_REFUSED_FIELDS))
def test_a_refused_field_is_named_unless_it_changes_nothing(name: str) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        parse_chat_body(chat_body(**{name: {"odd": 1}}))
    assert caught.value.param == name
    for neutral in (None, *CHAT_REFUSED_FIELDS[name][0]):
        parse_chat_body(chat_body(**{name: neutral}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": ["x"], "text": "a"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 4097}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.001}, "top_p"),
        ({"top_p": float("inf")}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]},
            "tools[0].function.strict",
        ),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.custom.name"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "continue_final_message": True,
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}],
                    }
                ],
            },
            "continue_final_message",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": -100.5}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]"),
        ({"bad_words": "x"}, "bad_words"),
        ({"bad_words": ["a", ""]}, "bad_words[1]"),
        ({"bad_words": ["a"] * 129}, "bad_words"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"echo": True}, "echo"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        ({"priority": "high"}, "priority"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
    ],
)
def test_a_wrong_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_body(chat_body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": [[1], [-1]]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": ["a"] * 65, "best_of": 2}, "best_of"),
        ({"chat_template": "x"}, "chat_template"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
def test_a_wrong_completion_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_completion_body(completion_body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'"text"', b"[]", b"[" * 5000, b'{"a":"\\ud800"}']
)
def test_what_is_no_json_object_is_a_clear_400(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_body(body)
    assert "JSON" in caught.value.message


def ranged_body(name: str, value: float) -> bytes:
    """A body in which a field with bounds stands where it belongs."""
    if name in ("best_of", "logprobs"):
        return completion_body(**{name: value})
    if name == "dimensions":
        return json.dumps({"model": "m", "input": "x", name: value}).encode()
    if name == "seconds":
        return json.dumps({"model": "m", name: value}).encode()
    extra = {"logprobs": True} if name == "top_logprobs" else {}
    return chat_body(**{name: value}, **extra)


def parse(body: bytes) -> None:
    if b'"messages"' in body:
        parse_chat_body(body)
    elif b'"input"' in body:
        parse_embedding_body(body)
    elif b'"seconds"' in body:
        validate(ProfileRequest, load_json_object(body))
    else:
        parse_completion_body(body)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_bounds_of_the_table_hold_and_are_told(name: str) -> None:
    bounds = RANGES[name]
    whole = name not in ("temperature", "top_p", "min_p") and "penalty" not in name
    step = 1 if whole else 0.001
    low = int(bounds.minimum) if whole else bounds.minimum
    high = int(bounds.maximum) if whole else bounds.maximum
    if name != "min_tokens":  # bounded by the other fields as well
        parse(ranged_body(name, high if name != "seed" else 2**63 - 1))
    too_low = low if bounds.exclusive_minimum else low - step
    for wrong in (too_low, high + step if name != "seed" else 2**63):
        with pytest.raises(InvalidRequestError) as caught:
            parse(ranged_body(name, wrong))
        assert caught.value.param == name
        assert str(bounds) in caught.value.message


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_a_top_p_of_zero_is_in_openais_range(zero: float) -> None:
    assert parse_chat_body(chat_body(top_p=zero))[0].top_p == 0
    assert parse_completion_body(completion_body(top_p=zero))[0].top_p == 0


def test_unknown_fields_are_reported_by_path() -> None:
    body = chat_body(foo=1, messages=[{**USER, "extra": 2}], user="u")
    assert parse_chat_body(body)[2] == ["foo", "messages[0].extra"]
    assert parse_completion_body(completion_body(bar=1))[1] == ["bar"]


def test_unknown_fields_within_others_are_reported_too() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "x": 1}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {}}]},
        {"role": "assistant", "tool_calls": [{**call, "y": 2}]},
    ]
    tools = [{"type": "function", "function": {"name": "f", "z": 3}, "cache_control": {}}]
    body = chat_body(messages=messages, tools=tools, stream=True, stream_options={"continuous": 1})
    assert parse_chat_body(body)[2] == [
        "stream_options.continuous",
        "messages[0].content[0].cache_control",
        "messages[1].tool_calls[0].y",
        "messages[1].tool_calls[0].function.x",
        "tools[0].cache_control",
        "tools[0].function.z",
    ]


def test_a_million_unknown_fields_are_not_all_listed() -> None:
    body = chat_body(**{f"x{number}": 1 for number in range(1000)})
    assert len(parse_chat_body(body)[2]) == MAX_LISTED_FIELDS


def test_every_field_of_openais_messages_is_honoured_or_refused() -> None:
    known = ChatMessage.known_fields | set(REFUSED_MESSAGE_FIELDS) | FUNCTION_FIELDS
    for kind in ("User", "Assistant", "Tool", "System", "Developer", "Function"):
        params = getattr(chat_types, f"ChatCompletion{kind}MessageParam")
        assert set(params.__annotations__) <= known


@pytest.mark.parametrize("name", sorted(REFUSED_MESSAGE_FIELDS))
def test_a_refused_field_of_a_message_is_named(name: str) -> None:
    message = {"role": "assistant", "content": "x", name: {"id": "1"}}
    assert_refused([USER, {"role": "assistant", "content": None, name: {}}], f"messages[1].{name}")
    assert_refused([USER, message, USER], f"messages[1].{name}")
    parse_chat_body(chat_body(messages=[USER, {**message, name: None}, USER]))


def assert_refused(messages: list[Any], param: str) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        parse_chat_body(chat_body(messages=messages))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "robot"}] * 16_384},
        {"messages": [{"role": "assistant", "tool_calls": [{}] * 1024}]},
        {"tools": [{}] * 1024},
        {"stop_token_ids": ["x"] * 128},
        {"allowed_token_ids": ["x"] * 10_000},
    ],
)
def test_a_list_of_wrong_items_costs_one_error(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_body(chat_body(**fields))
    found = re.search(r"\((\d+) more error", caught.value.message)
    assert found is None or int(found[1]) <= 4


def test_the_token_ids_of_a_long_prompt_are_not_tried_as_strings() -> None:
    body = completion_body(prompt=[1] * 1_000_000)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    request, _ = parse_completion_body(body)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert len(request.prompt) == 1_000_000
    assert grown_kb < 100 * 1024  # an error for each id would be three times that


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('"top_p": NaN', "top_p"),
        ('"top_p": -Infinity', "top_p"),
        ('"top_p": 1e999', "top_p"),
        ('"stop_token_ids": [1, NaN]', "stop_token_ids"),
        ('"x": [[1, {"y": [NaN]}]]', "y"),
        ('"x": ["a", NaN]', None),
    ],
)
def test_a_number_that_is_none_is_named_by_what_stands_before_it(
    text: str, param: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat_body(b"{" + text.encode() + b"}")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "why"), [("1e400", "beyond 1.8e308"), ("NaN", "NaN and Infinity are not JSON")]
)
def test_a_number_that_is_too_large_is_told_as_that(text: str, why: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"Invalid `const`: .*{why}"):
        parse_chat_body(f'{{"guided_json": {{"const": {text}}}}}'.encode())


def test_null_means_the_default() -> None:
    body = chat_body(temperature=None, n=None, stop=None, tools=None, stream=None, max_tokens=None)
    request, _, ignored = parse_chat_body(body)
    assert (request.temperature, request.n, ignored) == (None, None, [])


def test_a_completion_defaults_to_sixteen_tokens() -> None:
    assert parse_completion_body(completion_body())[0].output_limit == 16
    assert parse_completion_body(completion_body(max_tokens=3))[0].output_limit == 3


@pytest.mark.parametrize("one", ["[[]]", '{"k":0}', '{"[":{"":[]}}'])
def test_a_body_of_too_many_parts_is_refused_before_they_are_made(one: str) -> None:
    num_lists = MAX_PARTS // 2
    with pytest.raises(InvalidRequestError, match=str(MAX_PARTS)):
        load_json_object(f'{{"x":[{",".join([one] * num_lists)}]}}'.encode())


def test_a_body_of_as_many_parts_as_allowed_is_read() -> None:
    members = {str(number): 0 for number in range(MAX_PARTS - 3)}
    body = json.dumps({"x": members})  # two objects and one member beside them
    assert len(load_json_object(body.encode())["x"]) == MAX_PARTS - 3
    members["one more"] = 0
    with pytest.raises(InvalidRequestError, match=str(MAX_PARTS)):
        load_json_object(json.dumps({"x": members}).encode())


@pytest.mark.parametrize("text", ["[{:" * MAX_PARTS, '\\"[' * MAX_PARTS, "\\" * 999 + "["])
def test_brackets_and_colons_within_texts_are_no_parts(text: str) -> None:
    assert load_json_object(json.dumps({"x": [text, text]}).encode())["x"] == [text, text]


@pytest.mark.parametrize("end", ["", "\\", '\\"'])
def test_a_text_without_end_among_brackets_is_still_no_json(end: str) -> None:
    body = '{"x":"' + '\\"[' * MAX_PARTS + end
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        load_json_object(body.encode())

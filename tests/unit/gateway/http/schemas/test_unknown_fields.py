"""A field without a meaning is listed or refused, wherever in a body of whatever kind it stands."""

import re
from typing import Any, Final, get_args, get_type_hints

import orjson
import pytest
from openai.types.chat import ChatCompletionContentPartTextParam
from openai.types.responses import CustomToolParam, FunctionToolParam, ResponseInputItemParam

from gateway.errors import InvalidRequestError
from gateway.http.bodies.parsed_bodies import SocketBody
from gateway.http.bodies.parsers import COMPACT, KINDS
from gateway.http.openresponses.item_shapes import ITEM, TOOL
from gateway.http.openresponses.schemas import HARMLESS_FIELDS as RESPONSE_HARMLESS
from gateway.http.schemas.administration.organization import InviteRequest, SpendAlertRequest
from gateway.http.schemas.base.body import known_only
from gateway.http.schemas.inference.messages import TextPart
from tests.fakes.late import anthropic
from tests.fakes.sample_bodies import (
    CONTEXT,
    SAMPLE_BODIES,
    bytes_of,
    found_at,
    positions,
    replaced,
)

ODD_NAME: Final = "zzz"
FREE: Final = re.compile(
    r"(\.|^)(parameters|input_schema|schema|guided_json|data|state|logit_bias|metadata"
    r"|chat_template_kwargs|arguments|input_json|prediction|cache_control|citations|headers|criteria"
    r"|questions$)|^tool_choice\.(allowed_tools\.)?tools|content\[\d+\]\.input$|\.input$"
    r"|input\[\d+\]\.(tools|error)|items\[\d+\]\.(tools|error)|^params|\.authorization$"
)
"""Places where anything may stand: schemas, arguments, labels, what others say."""


def dotted(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def ignored_by(result: Any) -> list[str]:
    """What a parser has listed, of whatever it returns."""
    if not hasattr(result, "ignored"):
        return ignored_by(result.asked if hasattr(result, "asked") else result.body)
    found: list[str] = result.ignored
    return found


def told_of(kind: str, body: Any) -> list[str]:
    """The fields that a client is told of: as ignored, or refused."""
    try:
        result = KINDS[kind].parse(bytes_of(kind, body), CONTEXT)
        if isinstance(result, SocketBody):
            result = result.response()
    except InvalidRequestError as error:
        return [error.param or "nothing"]
    return [] if kind == "execute" else ignored_by(result)


LISTING: Final = [
    name
    for name in KINDS
    if not name.startswith("continued_") and name not in ("mcp", "conversation_update")
]


@pytest.mark.parametrize("kind", LISTING)
def test_a_field_without_a_meaning_is_listed_or_refused_wherever_it_is(kind: str) -> None:
    silent: list[str] = []
    for body in SAMPLE_BODIES[kind]:
        if {"conversation", "previous_response_id"} & body.keys():
            continue  # its second parsing says what is ignored
        for path in ((), *positions(body)):
            place = dotted((*path, ODD_NAME))
            value = found_at(body, path)
            is_free = FREE.search(dotted(path)) or (kind == "chat" and path[:1] == ("documents",))
            if not isinstance(value, dict) or is_free:
                continue
            changed = replaced(body, path, {**value, ODD_NAME: 1})
            if not any(place.startswith(one) for one in told_of(kind, changed)):
                silent.append(place)
    assert silent == []


@pytest.mark.parametrize("kind", LISTING)
def test_nothing_of_a_sample_is_without_a_meaning(kind: str) -> None:
    if kind == "execute":
        return  # it refuses it
    for body in SAMPLE_BODIES[kind]:
        if not {"conversation", "previous_response_id"} & body.keys():
            result = KINDS[kind].parse(bytes_of(kind, body), CONTEXT)
            # Counting runs no tools of servers.
            assert set(ignored_by(result)) <= {"tools[3]"}


def test_what_a_compaction_does_not_read_is_listed() -> None:
    body = {"model": "m", "input": "x", "stream": True, "store": None, "temperature": 0.5}
    assert COMPACT.parse(bytes_of("compact", body), CONTEXT).ignored == ["stream", "temperature"]


def test_a_compaction_takes_what_clients_send_along() -> None:
    body = {
        "model": "m",
        "input": "x",
        "tools": [{"type": "function", "name": "f", "zzz": 1}],
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium"},
        "text": {"verbosity": "low"},
        **dict.fromkeys(RESPONSE_HARMLESS, "x"),
    }
    found = COMPACT.parse(bytes_of("compact", body), CONTEXT)
    assert found.ignored == []
    assert found.job is not None
    assert found.job.end_user == "x"
    known = COMPACT.parse(bytes_of("compact", {"model": "m", "input": "x"}), CONTEXT)
    assert known.job is not None
    assert found.job.prepares == known.job.prepares


@pytest.mark.parametrize("kind", ["responses", "input_tokens", "compact"])
def test_a_personality_is_harmless(kind: str) -> None:
    body = {"model": "m", "input": "x", "personality": "friendly"}
    assert told_of(kind, body) == []


NEUTRAL: Final[dict[str, Any]] = {"allowed_callers": ["direct"], "defer_loading": False}
OWN_TOOLS: Final[list[dict[str, Any]]] = [
    {"type": "function", "name": "f", "parameters": {}},
    {"type": "custom", "name": "c"},
]


def response_with(tools: list[dict[str, Any]]) -> list[str]:
    return told_of("responses", {"model": "m", "input": "x", "tools": tools})


def messages_with(tool: dict[str, Any]) -> list[str]:
    messages = [{"role": "user", "content": "x"}]
    tools = [{"name": "f", "input_schema": {"type": "object"}, **tool}]
    body = {"model": "m", "max_tokens": 1, "messages": messages, "tools": tools}
    return told_of("messages", body)


@pytest.mark.parametrize("tool", OWN_TOOLS, ids=lambda tool: str(tool["type"]))
def test_a_field_of_a_tool_that_changes_nothing_is_not_listed(tool: dict[str, Any]) -> None:
    neutral = {**tool, **NEUTRAL, "async": False, "output_schema": None}
    within = {"type": "namespace", "name": "n", "description": "d", "tools": [neutral]}
    assert response_with([neutral, within]) == []
    for name, value in (
        ("allowed_callers", ["programmatic"]),
        ("allowed_callers", ["direct", "programmatic"]),
        ("defer_loading", True),
        ("defer_loading", 0),
        ("async", True),
        ("output_schema", {}),
    ):
        asked = {**tool, name: value}
        assert response_with([asked]) == [f"tools[0].{name}"]
        assert response_with([{**within, "tools": [asked]}]) == [f"tools[0].tools[0].{name}"]


def test_a_field_of_an_anthropic_tool_that_changes_nothing_is_not_listed() -> None:
    assert messages_with({**NEUTRAL, "input_examples": []}) == []
    for name, value in (
        ("allowed_callers", ["code_execution_20260120"]),
        ("defer_loading", True),
        ("input_examples", [{"a": 1}]),
    ):
        assert messages_with({name: value}) == [f"tools[0].{name}"]


def test_tools_as_the_clients_declare_them_are_known_to_their_last_field() -> None:
    """A field that comes with a new client is decided on, not forgotten."""
    listed = {"output_schema"}
    for tool, declared in ((OWN_TOOLS[0], FunctionToolParam), (OWN_TOOLS[1], CustomToolParam)):
        shape = TOOL.kinds[tool["type"]]
        assert set(get_type_hints(declared)) <= shape.known | shape.neutral.keys() | listed
    fields = {*get_type_hints(anthropic.types.ToolParam)} - {"input_schema", "type", "name"}
    assert messages_with(dict.fromkeys(fields, None)) == []
    assert set(messages_with(dict.fromkeys(fields - {"description", "strict"}, True))) == {
        f"tools[0].{name}" for name in (*NEUTRAL, "input_examples")
    }


def test_null_is_the_same_as_leaving_out_what_no_schema_knows() -> None:
    tool = {"type": "function", "function": {"name": "f", "zzz": None}, "cache_control": None}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "zzz": None}]}],
        "tools": [tool],
        "zzz": None,
        "stream": True,
        "stream_options": {"zzz": None},
    }
    assert told_of("chat", body) == []
    assert told_of("parse", {"text": "x", "format": "f", "tools": [tool], "zzz": None}) == []


def test_what_is_unknown_within_the_tools_of_a_text_is_listed_and_beside_them_refused() -> None:
    tool = {"type": "function", "strict": True, "function": {"name": "f", "zzz": 1}}
    body = {"text": "x", "format": "f", "tools": [{**tool, "cache_control": {}}]}
    found = KINDS["parse"].parse(bytes_of("parse", body), CONTEXT)
    assert found.ignored == ["tools[0].cache_control", "tools[0].strict", "tools[0].function.zzz"]
    with pytest.raises(InvalidRequestError, match="Unknown field: `zzz`"):
        KINDS["parse"].parse(bytes_of("parse", body | {"zzz": 1}), CONTEXT)


def test_a_cache_breakpoint_of_a_text_is_known_and_does_not_reach_the_model() -> None:
    assert set(get_type_hints(ChatCompletionContentPartTextParam)) <= TextPart.known_fields
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    result = KINDS["chat"].parse(bytes_of("chat", body), CONTEXT)
    assert result.ignored == []
    assert orjson.loads(result.job.prepares[0].messages_json) == [
        {"role": "user", "content": [{"type": "text", "text": "x"}]}
    ]


def test_what_is_repeated_of_a_name_is_bounded() -> None:
    name = "x" * 100_000
    user = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": user, name: 1, "logit_bias": {"1": 1}, "metadata": {name: 1}}
    (listed,) = KINDS["chat"].parse(bytes_of("chat", body), CONTEXT).ignored
    assert len(listed) < 200
    with pytest.raises(InvalidRequestError) as caught:
        KINDS["conversation_update"].parse(bytes_of("chat", {"metadata": {name: 1}}), CONTEXT)
    assert len(caught.value.message) < 500


def test_functions_are_named_in_the_words_of_the_client() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "functions": [{"name": "f", "zzz": 1}],
        "function_call": {"name": "f", "yyy": 1},
    }
    result = KINDS["chat"].parse(bytes_of("chat", body), CONTEXT)
    assert sorted(result.ignored) == ["function_call.yyy", "functions[0].zzz"]


def test_items_as_openais_client_declares_them_have_no_unknown_fields() -> None:
    declared: dict[str, set[str]] = {}
    for one in get_args(ResponseInputItemParam):
        hints = get_type_hints(one)
        names = get_args(getattr(hints["type"], "__args__", (hints["type"],))[0]) or get_args(
            hints["type"]
        )
        for name in names:
            if name in ITEM.kinds:
                declared.setdefault(name, set()).update(hints)
    assert declared.keys() == ITEM.kinds.keys()
    for name, known in declared.items():
        assert known <= ITEM.kinds[name].known, name


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        (
            InviteRequest,
            {
                "email": "a@b.c",
                "role": "owner",
                "projects": [{"id": "1", "role": "owner", "zzz": 1}],
            },
            "projects[0].zzz",
        ),
        (
            SpendAlertRequest,
            {
                "currency": "USD",
                "interval": "month",
                "threshold_amount": 1,
                "notification_channel": {"type": "email", "recipients": [], "zzz": "x"},
            },
            "notification_channel.zzz",
        ),
    ],
)
def test_administration_refuses_what_it_does_not_know_at_any_depth(
    model: Any, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        known_only(model, body)
    assert caught.value.param == param

"""`error.param` is the field that is wrong, as the client wrote it, wherever in a body it is."""

import json
import re
from typing import Any, Final

import pytest

from gateway.errors import InvalidRequestError
from gateway.http.bodies.parsers import (
    CHAT,
    COMPACT,
    COMPLETION,
    DECISION,
    KINDS,
    MESSAGES,
    RESPONSES,
    SCORE,
    SYSTEMONE,
    BodyKind,
)
from tests.fakes.sample_bodies import (
    CONTEXT,
    SAMPLE_BODIES,
    Path,
    bytes_of,
    odd_values,
    positions,
    replaced,
)

ELSEWHERE: Final = {
    # What is wrong at the first place contradicts what stands at the second one.
    *(("tools", "tool_choice"), ("functions", "function_call"), ("stream", "stream_options")),
    *(("logprobs", "logprob_token_ids"), ("messages", "prompt")),
    *(("input", "tools"), ("text_1", ""), ("text_2", ""), ("queries", ""), ("documents", "")),
    *(("data_1", ""), ("data_2", ""), ("items", "")),
}


def dotted(path: Path) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))


def is_named(path: Path, param: str) -> bool:
    """Whether an error names a place, one around it or in it, or one that it contradicts."""
    place, parent = dotted(path), dotted(path[:-1])
    if param and (is_within(place, param) or is_within(param, place)):
        return True
    # What a part of a type needs is beside its type, a call before its output.
    is_beside = path[-1] in ("type", "call_id", "value", "function_call") and len(path) > 1
    beside = re.sub(r"\[\d+\]$", "", parent if path[-1] == "type" else dotted(path[:-2]))
    # What a result answers is in the message before it, which has it no more.
    is_unanswered = param.endswith(".tool_use_id") and place.startswith("messages[")
    return (
        (str(path[0]), param) in ELSEWHERE
        or is_unanswered
        or (is_beside and is_within(param, beside))
    )


@pytest.mark.parametrize("kind", [name for name in KINDS if not name.startswith("continued")])
def test_an_error_names_the_place_that_is_wrong(kind: str) -> None:
    misnamed: set[tuple[str, str]] = set()
    for body in SAMPLE_BODIES[kind]:
        for place, path in enumerate(positions(body)):
            for odd in odd_values(kind, place):
                try:
                    KINDS[kind].parse(bytes_of(kind, replaced(body, path, odd)), CONTEXT)
                except InvalidRequestError as error:
                    if not is_named(path, error.param or ""):
                        misnamed.add((dotted(path), error.param or ""))
    assert misnamed - {("prompt[0]", "prompt[1]")} == set()


@pytest.mark.parametrize("name", ["tools[99]", f"tools[{'9' * 5000}]", "messages[7].tool_calls[0]"])
def test_a_name_that_looks_like_a_place_is_only_quoted(name: str) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}}
    responses = {"input": "x", "tools": [FUNCTION], "tool_choice": {**FUNCTION, "name": name}}
    messages = {
        "max_tokens": 1,
        "tools": [tool],
        "tool_choice": {"type": "tool", "name": name},
        **USER,
    }
    chat = {**USER, "functions": [{"name": "f"}], "function_call": {"name": name}}
    for kind, fields in ((RESPONSES, responses), (MESSAGES, messages), (CHAT, chat)):
        with pytest.raises(InvalidRequestError, match="there is no tool"):
            kind.parse(json.dumps({"model": "m", **fields}).encode(), CONTEXT)


USER: Final = {"messages": [{"role": "user", "content": "x"}]}
FUNCTION: Final = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    ("kind", "fields", "param", "words"),
    [
        (RESPONSES, {"input": 1}, "input", "a valid string or a valid list."),
        (RESPONSES, {"input": ["x", "y"]}, "input[0]", "a valid object."),
        (RESPONSES, {"input": "x", "tool_choice": 1}, "tool_choice", "or a valid object."),
        (RESPONSES, {"input": "x", "conversation": 1}, "conversation", "string or a valid object."),
        (RESPONSES, {"input": "x", "conversation": {}}, "conversation.id", "Missing"),
        (RESPONSES, {"input": [{"type": "mcp_list_tools", "error": "e"}]}, "input", "1 item"),
        (COMPACT, {"input": 1}, "input", "a valid list"),
        (
            RESPONSES,
            {"input": "x", "tools": [{"type": "web_search"}, {**FUNCTION, "parameters": 1}]},
            "tools[1].parameters",
            "object",
        ),
        (
            RESPONSES,
            {
                "input": "x",
                "tools": [{"type": "namespace", "name": "n", "tools": [{**FUNCTION, "strict": 1}]}],
            },
            "tools[0].tools[0].strict",
            "boolean",
        ),
        (MESSAGES, {**USER, "max_tokens": 1, "system": 1}, "system", "string or a valid list."),
        (MESSAGES, {**USER, "max_tokens": 1, "system": [1]}, "system[0]", "object"),
        (
            MESSAGES,
            {
                **USER,
                "max_tokens": 1,
                "tools": [
                    {"type": "bash_20250124", "name": "bash"},
                    {"name": "f", "input_schema": {}, "strict": 1},
                ],
            },
            "tools[1].strict",
            "boolean",
        ),
        (SCORE, {"text_1": 1, "text_2": "x"}, "text_1", "string or a valid list."),
        (SCORE, {"text_1": ["a", "b"], "text_2": "x"}, "text_2", "as many"),
        (SCORE, {"queries": [], "documents": "x"}, "queries", "to be a string"),
        (CHAT, {**USER, "guided_json": 1}, "guided_json", "string or a valid object."),
        (CHAT, {**USER, "guided_choice": ["x", 1]}, "guided_choice[1]", "string"),
        (
            CHAT,
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": 1}}]},
            "messages[0].function_call.arguments",
            "string",
        ),
        (CHAT, {**USER, "functions": {}}, "functions", "list"),
        (CHAT, {**USER, "temperature": 9, "guided_json": 1}, "guided_json", "(1 more error.)"),
        (COMPLETION, {"prompt": "x", "guided_json": 1}, "guided_json", "valid object"),
        (
            SYSTEMONE,
            {"state": 1, "questions": {}},
            "state",
            "object or a valid list. (1 more error.)",
        ),
        (
            DECISION,
            {
                "input": "x",
                "questions": [{"type": "choice", "instructions": "x", "choices": [1, 2]}],
            },
            "questions[0].choices[0]",
            "valid object.",
        ),
    ],
)
def test_a_union_is_named_by_its_field_and_says_all_that_it_takes(
    kind: BodyKind[Any], fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        kind.parse(json.dumps({"model": "m", **fields}).encode(), CONTEXT)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message
    assert words in caught.value.message

"""Custom tools: what engines and parsers are told of them, and how their calls are told."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from gateway.errors import InvalidRequestError, UnsupportedFieldError
from gateway.http.bodies.convert import chat_job
from gateway.http.bodies.parsers import CHAT, PARSE, TOKENIZE, BodyKind
from gateway.http.render.answer import ChatCollector
from gateway.http.render.common import AnswerHead
from gateway.http.render.custom_calls import CustomInput, custom_input
from gateway.http.render.stream import ChatStreamRenderer
from gateway.http.schemas.base.beside_loop import (
    MAX_GRAMMAR_CHARACTERS_ON_LOOP,
    BesideLoopError,
    read_on_loop,
)
from gateway.http.schemas.inference.chat import parse_chat_body
from gateway.request.delivery.events import (
    ChoiceFinished,
    GenerationEvent,
    ToolCallArguments,
    ToolCallStarted,
)
from gateway.request.jobs.answer_options import AnswerOptions
from gateway.request.jobs.job import GenerationJob
from protocol.wire.messages import Usage
from tests.fakes.running_gateway import events_of
from tests.fakes.sample_bodies import CONTEXT

USER = {"role": "user", "content": "?"}
RUN = {"type": "custom", "custom": {"name": "run", "description": "Runs code."}}
ADD = {"type": "function", "function": {"name": "add"}}
HEAD = AnswerHead("chatcmpl-1", 0, "m", "fp_1")
USAGE = Usage(prompt_tokens=1, completion_tokens=1)
SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def job(**fields: Any) -> tuple[GenerationJob, list[str]]:
    body = {"model": "m", "messages": [USER], **fields}
    request, raw, ignored = parse_chat_body(json.dumps(body).encode())
    return chat_job(request, raw), ignored


def with_format(**wanted: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "run", "format": wanted}}


def test_a_custom_tool_is_a_function_of_one_string() -> None:
    made, ignored = job(tools=[RUN, ADD])
    function = {"name": "run", "description": "Runs code.", "parameters": SCHEMA}
    assert json.loads(made.tools_json or "") == [{"type": "function", "function": function}, ADD]
    assert made.options.custom_tools == {"run"}
    assert ignored == []


def test_a_regular_expression_holds_the_input() -> None:
    grammar = {"syntax": "regex", "definition": "a|b"}
    made, _ = job(tools=[with_format(type="grammar", grammar=grammar)])
    function = json.loads(made.enforced_tools_json or "")[0]["function"]
    assert function["strict"] is True
    assert function["parameters"]["properties"]["input"]["pattern"] == "^(?:a|b)$"


def test_a_custom_tool_can_be_named_and_allowed() -> None:
    named, _ = job(tools=[RUN, ADD], tool_choice={"type": "custom", "custom": {"name": "run"}})
    assert (named.tool_choice, named.tool_name) == ("named", "run")
    tools = [{"type": "custom", "custom": {"name": "run"}}]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}}
    made, _ = job(tools=[RUN, ADD], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in json.loads(made.tools_json or "")] == ["run"]


def test_an_earlier_call_reaches_the_model_as_a_call_of_that_function() -> None:
    text = 'say "hi"\n\\'
    call = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": text}}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "hi"},
    ]
    made, ignored = job(messages=messages)
    sent = json.loads(made.prepares[0].messages_json or "")[1]["tool_calls"][0]
    assert (sent["id"], sent["type"], sent["function"]["name"]) == ("c1", "function", "run")
    assert json.loads(sent["function"]["arguments"]) == {"input": text}
    assert "custom" not in sent
    assert ignored == []


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools[0].custom"),
        ({"type": "custom", "custom": {}}, "tools[0].custom.name"),
        ({"type": "custom", "custom": {"name": "a b"}}, "tools[0].custom.name"),
        (with_format(), "tools[0].custom.format.type"),
        (with_format(type="grammar"), "tools[0].custom.format.grammar"),
        (
            with_format(type="grammar", grammar={"syntax": "ebnf", "definition": "a"}),
            "tools[0].custom.format.grammar.syntax",
        ),
        (
            with_format(type="grammar", grammar={"syntax": "regex", "definition": ""}),
            "tools[0].custom.format.grammar.definition",
        ),
        (
            with_format(type="grammar", grammar={"syntax": "regex", "definition": 5}),
            "tools[0].custom.format.grammar.definition",
        ),
    ],
)
def test_a_wrong_custom_tool_is_named(tool: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        job(tools=[tool])
    assert caught.value.param == param


def test_a_lark_grammar_holds_the_input_and_is_what_the_model_reads() -> None:
    definition = 'start: "a" LETTER+\n%import common.LETTER'
    grammar = {"syntax": "lark", "definition": definition}
    made, _ = job(tools=[with_format(type="grammar", grammar=grammar)])
    enforced = json.loads(made.enforced_tools_json or "")[0]["function"]
    assert enforced["strict"] is True
    pattern = enforced["parameters"]["properties"]["input"]["pattern"]
    assert re.search(pattern, "abc")
    assert not re.search(pattern, "a1")
    shown = json.loads(made.tools_json or "")[0]["function"]
    assert shown["parameters"]["properties"]["input"] == {"type": "string"}
    assert shown["description"].endswith(definition)


def test_a_lark_grammar_that_is_more_than_an_expression_goes_to_the_parser_as_rules() -> None:
    definition = 'start: "(" start? ")"'
    grammar = {"syntax": "lark", "definition": definition}
    made, _ = job(tools=[with_format(type="grammar", grammar=grammar)])
    enforced = json.loads(made.enforced_tools_json or "")[0]["function"]
    assert enforced["strict"] is True
    assert enforced["parameters"]["properties"]["input"] == {"type": "string"}
    assert enforced["x_penstock_input"] == {
        "rules": ["R1", "T0 (R1)? T1"],
        "terminals": [[r"\(", r"\("], [r"\)", r"\)"]],
    }
    shown = json.loads(made.tools_json or "")[0]["function"]
    assert "x_penstock_input" not in shown
    assert shown["description"].endswith(definition)


def test_a_function_has_no_such_rules_whatever_its_client_writes() -> None:
    rules = {"rules": ["T0"], "terminals": [["a", "a"]]}
    function = {"name": "f", "strict": True, "x_penstock_input": rules}
    made, _ = job(tools=[{"type": "function", "function": function}])
    assert "x_penstock_input" not in (made.enforced_tools_json or "")


def test_so_many_lark_grammars_are_read_for_a_request() -> None:
    grammar = {"syntax": "lark", "definition": 'start: "a" start?'}

    def tools(num: int) -> list[Any]:
        made = [with_format(type="grammar", grammar=grammar) for _ in range(num)]
        for index, tool in enumerate(made):
            tool["custom"] = {**tool["custom"], "name": f"t{index}"}
        return made

    assert job(tools=tools(32))
    with pytest.raises(InvalidRequestError, match="33 tools have a Lark grammar") as caught:
        job(tools=tools(33))
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CHAT, {"model": "m", "messages": [USER]}),
        (TOKENIZE, {"messages": [USER]}),
        (PARSE, {"text": "x", "format": "hermes"}),
    ],
    ids=["chat", "tokenize", "parse"],
)
def test_long_lark_grammars_are_read_beside_the_loop_on_every_route(
    kind: BodyKind[Any], body: dict[str, Any]
) -> None:
    definition = 'start: "a" start?' + " " * MAX_GRAMMAR_CHARACTERS_ON_LOOP
    grammar = {"syntax": "lark", "definition": definition}
    sent = json.dumps({**body, "tools": [with_format(type="grammar", grammar=grammar)]}).encode()
    with pytest.raises(BesideLoopError):
        read_on_loop(lambda: kind.parse(sent, CONTEXT))
    assert kind.parse(sent, CONTEXT)


def test_what_lark_has_and_nobody_follows_is_refused_with_its_line() -> None:
    grammar = {"syntax": "lark", "definition": 'start: "a" start?\n%import python.NAME'}
    with pytest.raises(UnsupportedFieldError, match="line 2: `%import python") as caught:
        job(tools=[with_format(type="grammar", grammar=grammar)])
    assert caught.value.param == "tools[0].custom.format.grammar.definition"


@pytest.mark.parametrize(("syntax", "limit"), [("lark", 16_384), ("regex", 262_144)])
def test_a_grammar_is_bounded_by_its_syntax(syntax: str, limit: int) -> None:
    grammar = {"syntax": syntax, "definition": "!" * (limit + 1)}
    with pytest.raises(InvalidRequestError, match=f"1 to {limit} characters") as caught:
        job(tools=[with_format(type="grammar", grammar=grammar)])
    assert caught.value.param == "tools[0].custom.format.grammar.definition"


def test_a_call_without_what_it_called_is_named() -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]}]
    with pytest.raises(InvalidRequestError) as caught:
        job(messages=messages)
    assert caught.value.param == "messages[1].tool_calls[0].custom"


def test_unknown_fields_within_are_listed() -> None:
    tool = {"type": "custom", "custom": {"name": "run", "strict": True}}
    assert job(tools=[tool])[1] == ["tools[0].custom.strict"]


def events(*arguments: str, name: str = "run") -> list[GenerationEvent]:
    pieces = [ToolCallArguments(0, 0, piece) for piece in arguments]
    return [ToolCallStarted(0, 0, "c", name), *pieces, ChoiceFinished(0, "tool_calls", USAGE)]


def test_a_whole_answer_tells_the_input_and_openais_own_types_accept_it() -> None:
    collector = ChatCollector(HEAD, 1, AnswerOptions(custom_tools=frozenset({"run"})))
    collector.add(events('{"input": "1 ', '\\u002b 2"}'))
    answer = orjson.loads(collector.body(USAGE))
    ChatCompletion.model_validate(answer)
    called = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "1 + 2"}}
    assert answer["choices"][0]["message"]["tool_calls"] == [called]


def test_other_tools_stay_functions() -> None:
    collector = ChatCollector(HEAD, 1, AnswerOptions(custom_tools=frozenset({"run"})))
    collector.add(events("{}", name="add"))
    message = orjson.loads(collector.body(USAGE))["choices"][0]["message"]
    function = {"name": "add", "arguments": "{}"}
    assert message["tool_calls"] == [{"id": "c", "type": "function", "function": function}]


def streamed(*arguments: str) -> tuple[list[dict[str, Any]], str]:
    renderer = ChatStreamRenderer(HEAD, AnswerOptions(custom_tools=frozenset({"run"})))
    sent = b"".join(renderer.render([event]) for event in events(*arguments))
    *chunks, _ = events_of((sent + renderer.finish(USAGE)).decode())
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    return calls, "".join(call["custom"]["input"] for call in calls)


def test_a_stream_tells_the_input_as_it_grows() -> None:
    calls, text = streamed('{"in', 'put": "1', " +", ' 2"', "}")
    assert calls[0] == {
        "index": 0,
        "id": "c",
        "type": "custom",
        "custom": {"name": "run", "input": ""},
    }
    assert calls[1:] == [{"index": 0, "custom": {"input": piece}} for piece in ("1", " +", " 2")]
    assert text == "1 + 2"


@pytest.mark.parametrize("others", ['{"code": "1"}', "{", '{"input": 5}', '{"inputs": "x"}', ""])
def test_arguments_without_an_input_are_told_as_they_are(others: str) -> None:
    assert custom_input(others) == others
    assert streamed(others)[1] == others


def test_a_cut_call_tells_what_came() -> None:
    assert custom_input('{"input": "ab\\u00') == "ab"
    assert custom_input('{"input": "ab\\ud83d') == "ab"


@given(
    text=st.text(st.sampled_from('ab"\\/\n\té\u2028😀\ud83d\ude00'), max_size=20),
    is_ascii=st.booleans(),
    size=st.integers(1, 13),
)
def test_pieces_of_any_size_spell_the_text(text: str, is_ascii: bool, size: int) -> None:
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not is_ascii:
        text = joined
    arguments = json.dumps({"input": text}, ensure_ascii=is_ascii)
    reader = CustomInput()
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)]
    assert "".join(map(reader.feed, pieces)) + reader.finish() == joined

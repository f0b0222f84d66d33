"""Single facts about the shapes of calls beside the JSON object, one text each."""

import json
from typing import Any

import pytest

from tests.fakes.parsed_text import REASONING, TOOLS, new_machine, parse
from toolparser_worker.errors import UnknownFormatError
from toolparser_worker.formats import find_reasoning_format, find_tool_format
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.coercion import coerced
from toolparser_worker.machine.render import render_calls
from toolparser_worker.machine.tool_schemas import ToolSchemas

SCHEMAS = ToolSchemas(
    [
        {
            "function": {
                "name": "f",
                "parameters": {
                    "properties": {
                        "text": {"type": "string"},
                        "number": {"type": "integer"},
                        "either": {"anyOf": [{"type": "null"}, {"type": "string"}]},
                    }
                },
            }
        }
    ]
)


def test_a_text_parameter_streams_and_a_number_waits_for_its_end() -> None:
    machine = new_machine(TOOLS["qwen3_coder"], None, tools=SCHEMAS)
    machine.feed("<tool_call>\n<function=f>\n<parameter=text>\n")
    assert "".join(event.text for event in machine.feed("some")) == "some"
    machine.feed("\n</parameter>\n<parameter=number>\n")
    assert machine.feed("4") == ()
    events = machine.feed("2\n</parameter>")
    assert "".join(event.text for event in events) == "42"


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("5", {"type": "string"}, "5"),
        ("5.0", {"type": "number"}, 5),
        ("True", {"type": "boolean"}, True),
        ("null", {"type": ["string", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("[1", {"type": "array"}, "[1"),
        ('{"a": "5"}', {"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 5}),
        ("NaN", {"type": "number"}, "NaN"),
        ("1" * 5000, {"type": "integer"}, "1" * 5000),
        ("[" * 50_000, {"type": "array"}, "[" * 50_000),
        ("x", None, "x"),
        ("a", {"enum": ["a", 1]}, "a"),
    ],
)
def test_a_value_becomes_what_its_schema_says(
    text: str, schema: dict[str, object] | None, expected: object
) -> None:
    assert json.loads(coerced(text, schema)) == expected


def test_a_call_of_an_unknown_tool_is_text_or_dropped_as_the_format_says() -> None:
    text = '<dots_function_call><invoke name="g"></invoke></dots_function_call>'
    assert parse(text, TOOLS["dots"], tools=SCHEMAS).content == text
    dropped = parse("<tool_call>g</tool_call>", TOOLS["glm45"], tools=SCHEMAS)
    assert (dropped.content, dropped.calls, dropped.num_malformed) == ("", [], 1)


def test_json_that_the_worker_writes_is_whole_even_when_the_text_is_cut_off() -> None:
    for name, text in (
        ("qwen3_coder", "<function=f>\n<parameter=text>\nhal"),
        ("gemma4", '<|tool_call>call:f{text:<|"|>hal'),
        ("pythonic", "[f(text='hal"),
        ("glm45", "<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>hal"),
    ):
        parsed = parse(text, TOOLS[name], tools=SCHEMAS)
        assert json.loads(parsed.calls[0].arguments) == {"text": "hal"}
        assert not parsed.calls[0].is_complete
        assert parsed.num_malformed == 1


def test_arguments_in_a_string_are_unpacked() -> None:
    arguments = '"{\\"text\\": \\"\\\\ud83d\\\\ude00\\"}"'
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    for pieces in (text, list(text)):
        parsed = parse(pieces, TOOLS["granite4"])
        assert json.loads(parsed.calls[0].arguments) == {"text": "😀"}


@pytest.mark.parametrize(
    "text", ["[1, 2] is a list", "[see(1)] is", "[f(x)]", "[f(x=g())]", "[f(x=1 + 2)]", "[f"]
)
def test_python_that_is_no_call_loses_nothing(text: str) -> None:
    parsed = parse(text, TOOLS["pythonic"])
    kept = parsed.content + "".join(call.arguments for call in parsed.calls)
    assert kept == text or parsed.num_malformed == 1


def test_ids_come_in_the_styles_of_the_families() -> None:
    assert call_id("r", 0, 1, name="f").startswith("call_")
    nine = call_id("r", 0, 1, name="f", style="nine")
    assert len(nine) == 9
    assert nine.isalnum()
    indexed = call_id("r", 0, 1, name="f", style="indexed")
    assert indexed.startswith("functions.f:")
    assert indexed != call_id("r", 0, 2, name="f", style="indexed")


def test_messages_say_themselves_what_they_are() -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
    )
    parsed = parse(text, TOOLS["openai"])
    assert [(call.name, call.arguments) for call in parsed.calls] == [("f", '{"x": 1}')]
    assert parsed.content == ""


def test_blanks_within_kimis_markers_mean_nothing() -> None:
    text = (
        "<|open|> think <|sep|>hm<|close|>think <|sep|><|open|> response<|sep|>Hi"
        '<|close|> response <|sep|><|open|>tools <|sep|><|open|> call  tool="f" index="1" <|sep|>'
        '<|open|> argument key="x" type="number" <|sep|>1<|close|> argument<|sep|>'
        "<|close|> call <|sep|><|close|> tools <|sep|>"
    )
    for pieces in (text, list(text)):
        parsed = parse(pieces, TOOLS["kimi_k3"], REASONING["kimi_k3"])
        assert (parsed.content, parsed.reasoning) == ("Hi", "hm")
        assert [(call.name, call.arguments) for call in parsed.calls] == [("f", '{"x": 1}')]


@pytest.mark.parametrize("name", ["qwen3_coder", "step3p5"])
def test_blanks_within_qwens_tags_mean_nothing(name: str) -> None:
    text = (
        "<tool_call>\n<function = f>\n<parameter = text >\na < b\n</parameter >\n"
        "<parameter= count>1</parameter>\n</function >\n</tool_call>"
    )
    for pieces in (text, list(text)):
        (call,) = parse(pieces, TOOLS[name], tools=SCHEMAS).calls
        assert (call.name, call.is_complete) == ("f", True)
        assert json.loads(call.arguments)["text"] == "a < b"


def test_a_doubled_name_is_the_tool_if_there_is_one() -> None:
    def names(name: str, tools: ToolSchemas) -> list[str]:
        text = f' to=x<|message|><atem:function_calls><atem:invoke name="{name}"></atem:invoke>'
        return [call.name for call in parse(text, TOOLS["muse_glimmer"], tools=tools).calls]

    read = ToolSchemas([{"function": {"name": "read"}}])
    assert names("read.read", read) == ["read"]
    assert names("read.write", read) == ["read.write"]
    assert names("read.read", ToolSchemas([{"function": {"name": "read.read"}}])) == ["read.read"]
    assert names("read.read", ToolSchemas()) == ["read.read"]


def test_gemmas_reasoning_may_lack_its_marker() -> None:
    parsed = parse("thought\nhm<channel|>thought\n", TOOLS["gemma4"], REASONING["gemma4"])
    assert (parsed.reasoning, parsed.content) == ("hm", "thought\n")


def test_a_tokenizers_suffix_follows_the_formats_name() -> None:
    tool_format, reasoning = find_tool_format("hy_v3:x"), find_reasoning_format("hy-v3:x")
    assert tool_format is not None
    text = "hm</think:x>" + render_calls(tool_format, [("f", '{"text": "a"}')])
    assert "<tool_call:x>f<tool_sep:x>" in text
    parsed = parse(text, tool_format, reasoning, prompt_tail="<think:x>", tools=SCHEMAS)
    assert (parsed.reasoning, parsed.content) == ("hm", "")
    assert [(call.name, call.arguments) for call in parsed.calls] == [("f", '{"text": "a"}')]
    assert parse(text, TOOLS["hy_v3"]).calls == []
    for name in ("hermes:x", "hy_v3:", ":x"):
        with pytest.raises(UnknownFormatError):
            find_tool_format(name)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a", {"thinking": False}, ("", "a")),
        ("a", {"thinking": True}, ("a", "")),
        ("a", {}, ("a", "")),
        ("<think>a</think>b", {"thinking": False}, ("a", "b")),
        ("a</think>b", {"thinking": False, "prompt_tail": "<think>\n"}, ("a", "b")),
        ("a", {"thinking": True, "prompt_tail": "</think>\n\n"}, ("", "a")),
    ],
)
def test_reasoning_that_was_switched_off_is_not_expected(
    text: str, options: dict[str, Any], expected: tuple[str, str]
) -> None:
    parsed = parse(text, None, REASONING["qwen3"], **options)
    assert (parsed.reasoning, parsed.content) == expected

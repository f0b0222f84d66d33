"""Single facts about the shapes of calls beside the JSON object, one text each."""

import json

import pytest

from tests.fakes.parsed_text import TOOLS, new_machine, parse
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.coercion import coerced
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
    text = '<tool_call>{"name": "f", "arguments": "{\\"text\\": \\"\\\\ud83d\\\\ude00\\"}"}</tool_call>'
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

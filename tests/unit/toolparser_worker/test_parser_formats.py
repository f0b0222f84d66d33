"""The registry of formats, and that declarations are data."""

import ast
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from protocol.errors import ErrorCode
from tests.fakes.parsed_text import parse
from tests.fakes.source_trees import tree_of
from toolparser_worker import formats
from toolparser_worker.errors import FormatPluginError, UnknownFormatError
from toolparser_worker.formats import (
    PLUGIN_GROUP,
    REASONING_FORMATS,
    TOOL_FORMATS,
    by_name,
    find_reasoning_format,
    find_tool_format,
    plugin_formats,
)
from toolparser_worker.machine import declarations
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.render import render_calls

DECLARATIONS = sorted(
    path for path in Path(formats.__file__).parent.glob("*.py") if path.stem != "__init__"
)
ALLOWED = (ast.Expr, ast.ImportFrom, ast.Assign)


@pytest.mark.parametrize("path", DECLARATIONS, ids=lambda path: path.stem)
def test_a_declaration_holds_data_and_no_code(path: Path) -> None:
    tree = tree_of(path)
    assert all(isinstance(node, ALLOWED) for node in tree.body)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef | ast.For | ast.If)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Name)
            assert node.func.id in dir(declarations)


TOOL_NAMES = [
    "apertus",
    "apriel",
    "cohere_command3",
    "cohere_command4",
    "deepseek_v3",
    "deepseek_v31",
    "deepseek_v32",
    "deepseek_v4",
    "dots",
    "ernie45",
    "functiongemma",
    "gemma4",
    "gigachat3",
    "glm45",
    "glm47",
    "granite",
    "granite-20b-fc",
    "granite4",
    "hermes",
    "hunyuan_a13b",
    "hy_v3",
    "inkling",
    "internlm",
    "jamba",
    "kimi_k2",
    "kimi_k3",
    "lfm2",
    "ling3",
    "llama3_json",
    "llama4_json",
    "llama4_pythonic",
    "longcat",
    "mimo",
    "minicpm5",
    "minimax",
    "minimax_m2",
    "minimax_m3",
    "mistral",
    "muse_glimmer",
    "nemotron_nano_v2",
    "olmo3",
    "openai",
    "phi4",
    "phi4_mini_json",
    "poolside_v1",
    "pythonic",
    "qwen3_coder",
    "qwen3_xml",
    "seed_oss",
    "step3",
    "step3p5",
    "xlam",
    "glm-4.5",
    "glm-4.7",
    "step3.5",
    "gptoss",
    "harmony",
]
REASONING_NAMES = [
    "apriel",
    "cohere_command3",
    "cohere_command4",
    "deepseek_r1",
    "deepseek_v3",
    "deepseek_v4",
    "ernie45",
    "gemma4",
    "glm45",
    "glm47",
    "granite",
    "holo2",
    "hunyuan_a13b",
    "hy_v3",
    "inkling",
    "kimi_k2",
    "kimi_k3",
    "ling3",
    "mimo",
    "minimax_m2",
    "minimax_m2_append_think",
    "minimax_m3",
    "mistral",
    "muse_glimmer",
    "nemotron_v3",
    "olmo3",
    "openai_gptoss",
    "poolside_v1",
    "qwen3",
    "seed_oss",
    "step3",
    "step3p5",
    "think",
    "deepseek-r1",
]


@pytest.mark.parametrize("name", TOOL_NAMES)
def test_tool_formats_are_found_by_name_and_alias(name: str) -> None:
    assert isinstance(find_tool_format(name), ToolFormat)
    assert name in TOOL_FORMATS


@pytest.mark.parametrize("name", REASONING_NAMES)
def test_reasoning_formats_are_found_by_name_and_alias(name: str) -> None:
    assert isinstance(find_reasoning_format(name), ReasoningFormat)
    assert name in REASONING_FORMATS


@pytest.mark.parametrize("name", [None, "none"])
def test_none_is_no_format(name: str | None) -> None:
    assert find_tool_format(name) is None
    assert find_reasoning_format(name) is None


def test_an_unknown_format_names_the_closest_and_all_known_ones() -> None:
    with pytest.raises(UnknownFormatError, match="Did you mean 'hermes'") as caught:
        find_tool_format("hermess")
    assert "llama3_json" in caught.value.message
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UnknownFormatError) as caught:
        find_reasoning_format("x" * 10_000)
    assert "Did you mean" not in caught.value.message
    assert len(caught.value.message) < 1000


class Plugin(EntryPoint):
    """An entry point that names something that is there already."""

    def load(self) -> object:
        return ast.literal_eval(self.value) if self.value.startswith("(") else MADE_UP_FORMATS


MADE_UP_FORMATS = (
    ToolFormat(
        name="shouted",
        body=declarations.JsonObjectBody(starts=("CALL!",), end="DONE!"),
        rendered_call_start="CALL!",
        rendered_call_end="DONE!",
    ),
)


def test_a_plugin_adds_a_format_with_a_declaration_alone() -> None:
    plugin = Plugin(name="shouted", value="FORMATS", group=PLUGIN_GROUP)
    tools, _ = by_name(plugin_formats([plugin]))
    parsed = parse(render_calls(tools["shouted"], [("f", '{"x": 1}')]), tools["shouted"])
    assert [(call.name, call.arguments) for call in parsed.calls] == [("f", '{"x": 1}')]


@pytest.mark.parametrize("value", ["(1,)", "(oops"])
def test_a_plugin_that_cannot_be_used_is_named(value: str) -> None:
    plugin = Plugin(name="shouted", value=value, group=PLUGIN_GROUP)
    with pytest.raises(FormatPluginError, match="'shouted'"):
        by_name(plugin_formats([plugin]))


def test_no_two_formats_have_the_same_name() -> None:
    with pytest.raises(FormatPluginError, match="'shouted'"):
        by_name([*MADE_UP_FORMATS, *MADE_UP_FORMATS])


@pytest.mark.parametrize(
    "written",
    [
        '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
        "<|/tool_call|>",
        '<|tool_call|>{"name": "f", "arguments": {"x": 1}}<|/tool_call|>'
        '<|tool_call|>{"name": "g", "arguments": {}}<|/tool_call|>',
        '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]',
        '<|tool_call|>{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}'
        "<|/tool_call|>",
        '<|tool_call|>{"name": "f", "arguments": {"x": 1}},\n{"name": "g", "arguments": {}}',
    ],
)
def test_what_phi_4_mini_writes_with_its_own_template_is_calls(written: str) -> None:
    """Often without the list, or without the end."""
    found = parse(f"One moment.\n{written}", TOOL_FORMATS["phi4"], None)
    assert [(call.name, call.arguments) for call in found.calls] == [("f", '{"x": 1}'), ("g", "{}")]
    assert (found.content.strip(), found.num_malformed) == ("One moment.", 0)


@pytest.mark.parametrize("rest", [",", ", ]", ", and", "]"])
def test_what_follows_a_call_of_a_list_without_brackets_is_told_of(rest: str) -> None:
    found = parse(
        f'<|tool_call|>{{"name": "f", "arguments": {{}}}}{rest}<|/tool_call|>',
        TOOL_FORMATS["phi4"],
        None,
    )
    assert [(call.name, call.arguments) for call in found.calls] == [("f", "{}")]
    assert (found.content, found.num_malformed) == ("", 1)


@pytest.mark.parametrize("start", ["", "Here are my reasoning steps:\n"])
@pytest.mark.parametrize("end", ["", "\n[END FINAL RESPONSE]\n"])
def test_what_apriel_writes_is_reasoning_answer_and_calls(start: str, end: str) -> None:
    """The prompt of its own template begins the reasoning; that of others does not."""
    tail = "<|assistant|>\n" if start else "<|begin_assistant|>\nHere are my reasoning steps:\n"
    formats = TOOL_FORMATS["apriel"], REASONING_FORMATS["apriel"]
    thought = f"{start}I need [both].\n[BEGIN FINAL RESPONSE]\n"
    found = parse(f"{thought}Four.{end}", *formats, prompt_tail=tail)
    assert (found.reasoning, found.content) == ("I need [both].", "Four.")
    called = '<tool_calls>[{"name": "f", "arguments": {"x": 1}, "id": "c1"}]</tool_calls>'
    found = parse(f"{thought}{called}{end}", *formats, prompt_tail=tail)
    assert [(call.name, call.arguments) for call in found.calls] == [("f", '{"x": 1}')]
    assert (found.reasoning, found.content, found.num_malformed) == ("I need [both].", "", 0)


def test_what_nemotron_nano_2_writes_is_reasoning_and_calls() -> None:
    text = (
        "I need both.\n</think>\n\nOne moment.\n\n"
        '<TOOLCALL>[{"name": "f", "arguments": {"x": 1}},'
        ' {"name": "g", "arguments": {}}]</TOOLCALL>'
    )
    found = parse(
        text,
        TOOL_FORMATS["nemotron_nano_v2"],
        REASONING_FORMATS["think"],
        prompt_tail="<SPECIAL_11>Assistant\n<think>\n\n",
    )
    assert [(call.name, call.arguments) for call in found.calls] == [("f", '{"x": 1}'), ("g", "{}")]
    assert (found.reasoning.strip(), found.content.strip()) == ("I need both.", "One moment.")
    assert found.num_malformed == 0

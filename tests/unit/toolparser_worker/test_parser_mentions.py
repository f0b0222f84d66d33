"""Thoughts that mention markers: only a call ends a thought, and only its own end marker else."""

import pytest

from tests.fakes.parsed_text import REASONING, TOOLS
from tests.fakes.text_in_every_cut import read, values
from toolparser_worker.machine.render import render_calls

MENTIONS = [
    ("hermes", "qwen3", "<think>", "<tool_call>", "</think>"),
    ("qwen3_coder", "qwen3", "<think>", "<tool_call>", "</think>"),
    ("qwen3_coder", "qwen3", "<think>", "<function=", "</think>"),
    ("qwen3_coder", "nemotron_v3", "<think>", "<tool_call>", "</think>"),
    ("glm45", "glm45", "<think>", "<tool_call>", "</think>"),
    ("kimi_k2", "kimi_k2", "<think>", "<|tool_calls_section_begin|>", "</think>"),
    ("minimax_m2", "minimax_m2", "<think>", "<minimax:tool_call>", "</think>"),
    ("deepseek_v4", "deepseek_v4", "<think>", "<｜DSML｜tool_calls>", "</think>"),
    ("seed_oss", "seed_oss", "<seed:think>", "<seed:tool_call>", "</seed:think>"),
    ("mistral", "mistral", "[THINK]", "[TOOL_CALLS]", "[/THINK]"),
    ("gemma4", "gemma4", "<|channel>thought\n", "<|tool_call>", "<channel|>"),
    ("minimax_m3", "minimax_m3", "<mm:think>", "]<]minimax[>[<tool_call>", "</mm:think>"),
    (
        "kimi_k3",
        "kimi_k3",
        "<|open|>think<|sep|>",
        "<|open|>tools<|sep|>",
        "<|close|>think<|sep|>",
    ),
]


@pytest.mark.parametrize(("tool", "reasoning", "start", "marker", "end"), MENTIONS)
@pytest.mark.parametrize(
    "thought", ["I see a {} marker here", "the marker {}", "a {}: b", "`{}` and {{1}}", "{} {}"]
)
def test_a_marker_that_a_thought_mentions_does_not_end_it(
    tool: str, reasoning: str, start: str, marker: str, end: str, thought: str
) -> None:
    inside = thought.format(marker, marker)
    parsed = read(tool, f"{start}{inside}{end}answer", reasoning)
    assert (parsed.reasoning, parsed.content, parsed.calls) == (inside, "answer", [])


@pytest.mark.parametrize(("tool", "reasoning", "start", "marker", "end"), MENTIONS)
def test_a_call_in_a_thought_that_mentioned_its_marker_still_ends_it(
    tool: str, reasoning: str, start: str, marker: str, end: str
) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = f"{start}I see {marker} here. {render_calls(tool_format, [('f', '{}')])}"
    parsed = read(tool, text, reasoning)
    assert parsed.reasoning.rstrip() == f"I see {marker} here."
    assert values(parsed) == [("f", {})]


@pytest.mark.parametrize("reasoning", ["qwen3", "glm45", "nemotron_v3", "minimax_m2", "seed_oss"])
def test_where_no_calls_are_read_a_mention_does_not_end_a_thought_either(reasoning: str) -> None:
    declared = REASONING[reasoning]
    assert declared is not None
    start, end = declared.starts[0], declared.ends[0]
    for marker in ("<tool_call>", "<minimax:tool_call>", "<seed:tool_call>"):
        parsed = read(None, f"{start}a {marker} b{end}c", reasoning)
        assert (parsed.reasoning, parsed.content) == (f"a {marker} b", "c")


def test_a_template_of_a_call_in_a_thought_is_none() -> None:
    thought = '<tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call>'
    parsed = read("hermes", f"<think>{thought}</think>answer", "qwen3")
    assert (parsed.reasoning, parsed.content, parsed.calls) == (thought, "answer", [])


def test_a_call_of_a_tool_that_is_none_is_only_an_example_in_a_thought() -> None:
    thought = 'like <tool_call>{"name": "example", "arguments": {}}</tool_call>, so'
    parsed = read("hermes", f"<think>{thought}</think>answer", "qwen3")
    assert (parsed.reasoning, parsed.content, parsed.calls) == (thought, "answer", [])

"""The laws of the machine, as properties over every declared format and a made-up one."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.parsed_text import (
    REASONING,
    TOOLS,
    Parsed,
    ParsedCall,
    cut,
    new_machine,
    parse,
)
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.render import render_calls, render_reasoning

PAIRS = [(tool, reasoning) for tool in TOOLS for reasoning in REASONING]
pairs = pytest.mark.parametrize(("tool", "reasoning"), PAIRS)
some_tool = pytest.mark.parametrize("tool", [name for name in TOOLS if name != "none"])

FRAGMENTS = [
    *(marker for tool in TOOLS.values() if tool for marker in tool.markers),
    *("<think>", "</think>", "<tool_", "call>", "</", "<", ">", ">>", "</thi", "<|python"),
    *('{"name": "f"', '"name": "g",', '"fn": "h"', '{"tool": "a"}', '{"name": 1'),
    *(', "arguments": {', '"parameters": ', '"args": [1, 2', '{"arguments": {}, ', '"x": '),
    *('{"name": "f", "arguments": {"x": "</tool_call>"}}', '{"name": "f", "parameters": {}}'),
    *("{", "}", "[", "]", ":", ",", '"', "\\", "\\u00", "1e5", "true", "nul", "; ", "é", "🙂"),
    *(" ", "\n", "\n\n", "word ", "a < b", "\t", "\x00"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)
CUTS = st.lists(st.integers(1, 200), max_size=12)
TOKEN_SIZES = st.lists(st.integers(0, 6), max_size=40)

NAMES = st.text(min_size=1, max_size=8)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(FRAGMENTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text() | st.sampled_from(FRAGMENTS), JSON_VALUES, max_size=3)


@st.composite
def calls(draw: st.DrawFn, min_size: int = 1) -> list[tuple[str, str]]:
    """Names and arguments as JSON text, spelt in any of the ways JSON can be."""
    drawn = draw(st.lists(st.tuples(NAMES, ARGUMENTS), min_size=min_size, max_size=3))
    indent = draw(st.sampled_from((None, 1)))
    is_ascii = draw(st.booleans())
    return [
        (name, json.dumps(value, ensure_ascii=is_ascii, indent=indent)) for name, value in drawn
    ]


def formats(tool: str, reasoning: str) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    return TOOLS[tool], REASONING[reasoning]


@pairs
@settings(max_examples=40)
@given(text=TEXTS, cuts=CUTS, sizes=TOKEN_SIZES)
def test_the_cut_of_the_text_changes_nothing(
    tool: str, reasoning: str, text: str, cuts: list[int], sizes: list[int]
) -> None:
    chosen = formats(tool, reasoning)
    token_ends = list(accumulate(sizes))
    whole = parse(text, *chosen, token_ends)
    assert parse(cut(text, cuts), *chosen, token_ends) == whole
    assert parse(list(text), *chosen, token_ends) == whole


@some_tool
@settings(max_examples=60)
@given(wanted=calls(), cuts=CUTS, content=st.sampled_from(("", "Well. ", "a\n\n")))
def test_what_is_rendered_parses_back_to_the_same_calls(
    tool: str, wanted: list[tuple[str, str]], cuts: list[int], content: str
) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    text = content + render_calls(tool_format, wanted)
    parsed = parse(cut(text, cuts), tool_format)
    assert [(call.name, call.arguments) for call in parsed.calls] == wanted
    assert all(call.is_complete for call in parsed.calls)
    assert parsed.content.rstrip("\n") == content.rstrip("\n")
    assert parsed.num_malformed == 0


@some_tool
@pytest.mark.parametrize("reasoning", [name for name in REASONING if name != "none"])
@settings(max_examples=25)
@given(wanted=calls(), cuts=CUTS)
def test_reasoning_and_calls_are_found_in_one_pass(
    tool: str, reasoning: str, wanted: list[tuple[str, str]], cuts: list[int]
) -> None:
    tool_format, reasoning_format = formats(tool, reasoning)
    assert tool_format is not None
    assert reasoning_format is not None
    text = render_reasoning(reasoning_format, "I look it up.") + "\n"
    text += render_calls(tool_format, wanted)
    parsed = parse(cut(text, cuts), tool_format, reasoning_format)
    assert parsed.reasoning == "I look it up."
    assert [(call.name, call.arguments) for call in parsed.calls] == wanted
    assert parsed.content.strip() == ""


@pairs
@settings(max_examples=40)
@given(text=TEXTS)
def test_nothing_is_lost_but_markers_and_nothing_is_invented(
    tool: str, reasoning: str, text: str
) -> None:
    tool_format, reasoning_format = formats(tool, reasoning)
    parsed = parse(text, tool_format, reasoning_format)
    for event in parsed.events:
        if event.kind in ("content", "reasoning") or event.end > event.start:
            assert event.kind == "tool_call_start" or text[event.start : event.end] == event.text
        elif event.text:
            assert event.text == "{}"
    markers = [*(tool_format.markers if tool_format else ())]
    markers += reasoning_format.markers if reasoning_format else ()
    alternatives = "|".join(map(re.escape, markers)) or "(?!)"
    for gap in gaps(parsed, text, tool_format):
        assert re.fullmatch(rf"(?:\s|{alternatives})*", gap), gap


def gaps(parsed: Parsed, text: str, tool_format: ToolFormat | None) -> list[str]:
    """The parts of the text that are in no event and in no call."""
    covered = [(e.start, e.end) for e in parsed.events if e.kind in ("content", "reasoning")]
    covered += [(call.start, call.end if call.is_complete else len(text)) for call in parsed.calls]
    if tool_format is not None and tool_format.text_after_calls == "drop" and parsed.calls:
        covered.append((parsed.calls[0].start, len(text)))
    found = []
    reached = 0
    for start, end in sorted(covered):
        found.append(text[reached:start])
        reached = max(reached, end)
    return [*found, text[reached:]]


@pairs
@settings(max_examples=40)
@given(text=TEXTS, keeps_all=st.booleans())
def test_complete_calls_are_valid_and_ids_are_unique_and_stable(
    tool: str, reasoning: str, text: str, keeps_all: bool
) -> None:
    chosen = formats(tool, reasoning)
    parsed = parse(text, *chosen, parallel_tool_calls=keeps_all)
    again = parse(list(text), *chosen, parallel_tool_calls=keeps_all)
    ids = [call.id for call in parsed.calls]
    assert ids == [call.id for call in again.calls]
    assert len(set(ids)) == len(ids)
    assert keeps_all or len(ids) <= 1
    if not parsed.num_malformed:
        for call in parsed.calls:
            assert call.is_complete
            json.loads(call.arguments)


def early_texts() -> list[tuple[str, str, str]]:
    """One text for each pair of formats, with all that a text can have."""
    texts = []
    for tool, reasoning in PAIRS:
        tool_format, reasoning_format = formats(tool, reasoning)
        text = render_reasoning(reasoning_format, "hm < 1") if reasoning_format else ""
        text += "\nO <{1 "
        if tool_format is not None:
            text += render_calls(tool_format, [("f", '{"a": "}<"}')])
        texts.append((tool, reasoning, text))
    return texts


def completions(tool_format: ToolFormat | None, following: str) -> list[str]:
    """Texts that tell apart whatever can still be told apart."""
    known = ["</think>", "<think>", '{"name": "q", "arguments": {}}', '"name": "q"}']
    if tool_format is not None:
        rendered = render_calls(tool_format, [("q", '{"z": 9}')])
        bare = rendered.removeprefix(tool_format.rendered_start)
        known += [rendered, tool_format.end, *(start + bare for start in tool_format.starts)]
    suffixes = [text[size:] for text in known for size in range(len(text))]
    return [*suffixes, following, "", "x", " x", "}", '"', '": ', '"}', '"x": 1}', "}}", ", "]


@pytest.mark.parametrize(
    ("tool", "reasoning", "text"), early_texts(), ids=[f"{a}-{b}" for a, b in PAIRS]
)
def test_what_all_completions_have_in_common_is_already_out(
    tool: str, reasoning: str, text: str
) -> None:
    chosen = formats(tool, reasoning)
    machine = new_machine(*chosen)
    emitted = Parsed()
    for size in range(1, len(text) + 1):
        emitted.add(machine.feed(text[size - 1]))
        ends = [parse(text[:size] + end, *chosen) for end in completions(chosen[0], text[size:])]
        assert len(emitted.content) >= common_size([end.content for end in ends])
        assert len(emitted.reasoning) >= common_size([end.reasoning for end in ends])
        for index in range(min(len(end.calls) for end in ends)):
            both: list[ParsedCall] = [end.calls[index] for end in ends]
            if len({call.name for call in both}) == 1:
                assert len(emitted.calls) > index
                size_out = common_size([call.arguments for call in both])
                assert len(emitted.calls[index].arguments) >= size_out


def common_size(texts: Sequence[str]) -> int:
    """How many characters all these texts begin with alike."""
    low, high = min(texts), max(texts)
    size = 0
    while size < min(len(low), len(high)) and low[size] == high[size]:
        size += 1
    return size


ADVERSARIES: dict[str, Callable[[int], str]] = {
    "content": lambda n: "a < b " * (n // 6),
    "spaces": lambda n: " " * n,
    "half markers": lambda n: "<tool_cal" * (n // 9),
    "markers": lambda n: "<tool_call>" * (n // 11),
    "spaces after a marker": lambda n: "<tool_call>" + " " * n,
    "spaces after a call": lambda n: '<tool_call>{"name": "f"}' + " " * n,
    "objects": lambda n: "{" * n,
    "keys": lambda n: '{"a": ' * (n // 6),
    "late name": lambda n: '<tool_call>{"arguments": {"a": "' + "x" * n,
    "name": lambda n: '<tool_call>{"name": "' + "x" * n,
    "arguments": lambda n: '<tool_call>{"name": "f", "arguments": {"a": "' + "\\n" * (n // 2),
    "broken": lambda n: '<tool_call>{"name": "f", ?' + "</tool_cal" * (n // 10),
    "brackets": lambda n: '<tool_call>{"name": "f", "arguments": ' + "[" * n,
    "calls": lambda n: '<tool_call>{"name": "f", "parameters": {}}' * (n // 42),
    "reasoning": lambda n: "<think>" + "</thin<tool_call>{" * (n // 18),
}


@pairs
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_work_grows_with_the_text_and_no_faster(tool: str, reasoning: str, adversary: str) -> None:
    def operations(text: str, size: int) -> int:
        machine = new_machine(*formats(tool, reasoning))
        for start in range(0, len(text), size):
            machine.feed(text[start : start + size])
        machine.finish()
        return machine.num_operations

    short, long = ADVERSARIES[adversary](1500), ADVERSARIES[adversary](3000)
    for size in (1, 4):
        growth = operations(long, size) - operations(short, size)
        assert growth <= 64 * (len(long) - len(short))


@pairs
@settings(max_examples=15)
@given(text=TEXTS)
def test_every_token_is_counted_on_one_side(tool: str, reasoning: str, text: str) -> None:
    ends = range(1, len(text) + 1)
    parsed = parse(text, *formats(tool, reasoning), ends)
    assert len(parsed.reasoning) <= parsed.num_reasoning_tokens <= len(text)
    if reasoning == "none":
        assert parsed.num_reasoning_tokens == 0


@given(text=st.text(), options=st.fixed_dictionaries({"prompt_tail": st.text(max_size=20)}))
def test_no_text_raises(text: str, options: dict[str, Any]) -> None:
    for tool, reasoning in PAIRS:
        parse(text, *formats(tool, reasoning), **options)

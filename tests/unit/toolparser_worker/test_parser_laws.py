"""The laws of the machine, as properties over every declared format and a made-up one."""

import itertools
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.format_pairs import FEWER_PAIRS, PAIRS, SOME_TOOLS, formats, schemas
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.law_of_cuts import DEEP, ESCAPES, assert_sendable
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import (
    TOOLS,
    Parsed,
    cut,
    parse,
)
from toolparser_worker.machine.declarations import (
    ElementBody,
    HeaderBody,
    JsonObjectBody,
    ReasoningFormat,
    ToolFormat,
)
from toolparser_worker.machine.render import render_calls, render_reasoning
from toolparser_worker.machine.tool_schemas import ToolSchemas

pytestmark = pytest.mark.timeout(300 * EFFORT)


LAWFUL = FEWER_PAIRS if EFFORT == 1 else PAIRS
"""Each format once in `make test`; in `make fuzz` every pair that models have, and more."""
pairs = of_each("tool,reasoning", LAWFUL)
some_tool = of_each("tool", SOME_TOOLS)
COMMON_FRAGMENTS = [
    *ESCAPES,
    *("<think>", "</think>", "<tool_", "call>", "</", "<", ">", ">>", "</thi", "<|python"),
    *('{"name": "f"', '"name": "g",', '"fn": "h"', '{"tool": "a"}', '{"name": 1'),
    *(', "arguments": {', '"parameters": ', '"args": [1, 2', '{"arguments": {}, ', '"x": '),
    *('{"name": "f", "arguments": {"x": "</tool_call>"}}', '{"name": "f", "parameters": {}}'),
    *("{", "}", "[", "]", ":", ",", '"', "\\", "\\u00", "1e5", "true", "nul", "; ", "é", "🙂"),
    *(" ", "\n", "\n\n", "word ", "a < b", "\t", "\x00", "f(x=1", "f()", "'a'", "x=", ")", "(1"),
    *('name="f">', "NAME", "k</arg_key>", "a:1", "call:f{", "functions.f:0", "to=f", "final"),
    *("f(x={'a': 1, 2", "f(x={'a', ", "f(x='''a", "\\'", "r'", "1_0", "-.5", "<![CDATA[", "]]>"),
]
CUTS = st.lists(st.integers(1, 200), max_size=12)
TAG_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True)


@lru_cache
def texts(tool: str, reasoning: str) -> st.SearchStrategy[str]:
    """Texts of the markers of a pair of formats, whole calls and bits of them."""
    tool_format, reasoning_format = formats(tool, reasoning)
    found = list(COMMON_FRAGMENTS)
    if tool_format is not None:
        found += tool_format.markers * 2
        whole = render_calls(tool_format, [("f", '{"a": "x", "b": [1, {"c": null}]}')])
        found += [whole, whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        found.append(render_calls(tool_format, [("f", "{}"), ("g", '{"k": "v w"}')]))
    if reasoning_format is not None:
        found += reasoning_format.markers * 2
        found.append(render_reasoning(reasoning_format, "hm"))
    return st.lists(st.sampled_from(found) | st.text(max_size=3), max_size=14).map("".join)


# Calls to write and read again.

VERBATIM = (JsonObjectBody, HeaderBody)
"""Bodies whose arguments are the model's own JSON, so that any JSON comes back as it was."""


def json_values(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
ANY_JSON = json_values(
    st.none() | st.booleans() | NUMBERS | st.text() | st.sampled_from(COMMON_FRAGMENTS), st.text()
)


def plain_texts(tool_format: ToolFormat) -> st.SearchStrategy[str]:
    """Texts that the format can say: none of its own markers, no white space around."""
    markers = [marker.strip() for marker in tool_format.markers if marker.strip()]
    return (
        (st.text() | st.lists(st.sampled_from(COMMON_FRAGMENTS), max_size=3).map("".join))
        .map(str.strip)
        .filter(lambda text: not any(marker in text for marker in markers) and "<![" not in text)
    )


@st.composite
def calls(draw: st.DrawFn, tool: str) -> list[tuple[str, str]]:
    """Names and arguments as JSON text, spelt in any of the ways JSON can be."""
    tool_format = TOOLS[tool]
    assert tool_format is not None
    body = tool_format.body
    if isinstance(body, VERBATIM):
        names = st.text(min_size=1, max_size=8) if isinstance(body, JsonObjectBody) else TAG_NAMES
        arguments = st.dictionaries(
            st.text() | st.sampled_from(COMMON_FRAGMENTS), ANY_JSON, max_size=3
        )
    else:
        names = TAG_NAMES
        leaves: st.SearchStrategy[Any] = plain_texts(tool_format)
        if not isinstance(body, ElementBody):
            leaves = leaves | st.booleans() | NUMBERS
        nested = st.dictionaries(TAG_NAMES, leaves, min_size=1, max_size=3)
        arguments = st.dictionaries(
            TAG_NAMES.filter(lambda key: key not in ("arguments", "input", "properties", "item")),
            leaves | st.lists(plain_texts(tool_format), min_size=1, max_size=3) | nested,
            max_size=3,
        )
    drawn = draw(
        st.lists(st.tuples(names, arguments), min_size=1, max_size=3, unique_by=lambda c: c[0])
    )
    indent = draw(st.sampled_from((None, 1)))
    is_ascii = draw(st.booleans())
    return [
        (name, json.dumps(value, ensure_ascii=is_ascii, indent=indent)) for name, value in drawn
    ]


def assert_same(parsed: Parsed, wanted: Sequence[tuple[str, str]], tool: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    found = [(call.name, call.arguments) for call in parsed.calls]
    if isinstance(tool_format.body, VERBATIM):
        assert found == list(wanted)
    else:
        assert [(name, json.loads(text)) for name, text in found] == [
            (name, json.loads(text)) for name, text in wanted
        ]
    assert all(call.is_complete for call in parsed.calls)
    assert parsed.num_malformed == 0


# The laws.


@some_tool
@settings(max_examples=5 * EFFORT)
@given(data=st.data(), cuts=CUTS, content=st.sampled_from(("", "Well. ", "a\n\n")))
def test_what_is_rendered_parses_back_to_the_same_calls(
    tool: str, data: st.DataObject, cuts: list[int], content: str
) -> None:
    wanted = data.draw(calls(tool))
    tool_format = TOOLS[tool]
    assert tool_format is not None
    if tool_format.framing is not None or tool_format.rendered_start == "[":
        content = ""  # Here a call is the whole of its message, or of the answer.
    text = content + render_calls(tool_format, wanted)
    parsed = parse(cut(text, cuts), tool_format, tools=schemas(wanted))
    assert_same(parsed, wanted, tool)
    assert parsed.content.rstrip() == content.rstrip()
    found = [(call.name, call.arguments) for call in parsed.calls]
    again = parse(render_calls(tool_format, found), tool_format, tools=schemas(wanted))
    assert_same(again, found, tool)


@of_each(
    "tool,reasoning",
    [
        (tool, reasoning)
        for tool, reasoning in PAIRS
        if tool != "none" and reasoning not in ("none", "minimax_m2_append_think")
    ],
)
@settings(max_examples=2 * EFFORT)
@given(data=st.data(), cuts=CUTS)
def test_reasoning_and_calls_are_found_in_one_pass(
    tool: str, reasoning: str, data: st.DataObject, cuts: list[int]
) -> None:
    tool_format, reasoning_format = formats(tool, reasoning)
    assert tool_format is not None
    assert reasoning_format is not None
    if reasoning_format.framing is not tool_format.framing:
        return  # Messages of one kind and calls of another are no text of any model.
    wanted = data.draw(calls(tool))
    text = render_reasoning(reasoning_format, "I look it up.")
    text += "" if reasoning_format.framing else "\n"
    text += render_calls(tool_format, wanted)
    tail = reasoning_format.starts[0] if reasoning_format.opens == "prompted" else ""
    parsed = parse(
        cut(text, cuts), tool_format, reasoning_format, tools=schemas(wanted), prompt_tail=tail
    )
    assert parsed.reasoning == "I look it up."
    assert_same(parsed, wanted, tool)
    assert parsed.content.strip() == ""


@pairs
@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_nothing_is_lost_but_markers_and_nothing_is_invented(
    tool: str, reasoning: str, data: st.DataObject
) -> None:
    text = data.draw(texts(tool, reasoning))
    tool_format, reasoning_format = formats(tool, reasoning)
    parsed = parse(text, tool_format, reasoning_format)
    is_verbatim = tool_format is not None and all(
        isinstance(body, VERBATIM) for body in tool_format.bodies
    )
    for event in parsed.events:
        if event.kind in ("content", "reasoning") or (is_verbatim and event.end > event.start):
            is_given = reasoning_format is not None and reasoning_format.content_prefix
            if event.kind == "content" and event.start == 0 and is_given:
                assert event.text == is_given + text[: event.end]
            else:
                assert event.kind == "tool_call_start" or (
                    text[event.start : event.end] == event.text
                )
        elif event.text and is_verbatim:
            # An empty object, or what a string in the text holds.
            assert event.text == "{}" or text[event.start] == '"'
    for gap in gaps(parsed, text, tool_format):
        assert re.fullmatch(droppable(tool_format, reasoning_format), gap, re.DOTALL), gap


@pairs
@settings(max_examples=3 * EFFORT)
@given(data=st.data(), cuts=CUTS)
def test_spans_follow_the_text_and_no_character_is_told_twice(
    tool: str, reasoning: str, data: st.DataObject, cuts: list[int]
) -> None:
    text = data.draw(texts(tool, reasoning))
    parsed = parse(cut(text, cuts), *formats(tool, reasoning))
    reached: dict[tuple[str, int], int] = {}
    for event in parsed.events:
        assert 0 <= event.start <= event.end <= len(text)
        channel = (event.kind, event.index)
        assert reached.get(channel, 0) <= event.start
        reached[channel] = event.end
    told = sorted((e.start, e.end) for e in parsed.events if e.kind in ("content", "reasoning"))
    inside = [(call.start, call.end) for call in parsed.calls if call.is_complete]
    for (_, end), (start, _) in itertools.pairwise(sorted(told + inside)):
        assert end <= start


def droppable(tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None) -> str:
    """What a pair of formats may drop, as a regular expression."""
    alternatives = [r"\s"]
    for declared in (tool_format, reasoning_format):
        if declared is None:
            continue
        if declared.framing is not None:
            return ".*"  # Headers and whole messages are dropped by what they say.
        alternatives += map(re.escape, declared.markers)
        for start, end in declared.dropped_spans:
            alternatives.append(f"{re.escape(start)}.*?(?:{re.escape(end)}|\\Z)")
    if tool_format is not None and tool_format.listed != "never":
        alternatives.append(r"[\[\],]")
    return f"(?:{'|'.join(alternatives)})*"


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
@settings(max_examples=5 * EFFORT)
@given(data=st.data(), keeps_all=st.booleans())
def test_complete_calls_are_valid_and_ids_are_unique_and_stable(
    tool: str, reasoning: str, data: st.DataObject, keeps_all: bool
) -> None:
    text = data.draw(texts(tool, reasoning))
    chosen = formats(tool, reasoning)
    parsed = parse(text, *chosen, parallel_tool_calls=keeps_all)
    again = parse(list(text), *chosen, parallel_tool_calls=keeps_all)
    ids = [call.id for call in parsed.calls]
    assert ids == [call.id for call in again.calls]
    assert len(set(ids)) == len(ids)
    assert keeps_all or len(ids) <= 1
    tool_format = chosen[0]
    if tool_format is not None and not isinstance(tool_format.body, VERBATIM):
        for call in parsed.calls:
            if call.is_complete and not parsed.num_malformed:
                json.loads(call.arguments)
    if not parsed.num_malformed:
        for call in parsed.calls:
            assert call.is_complete
            json.loads(call.arguments)


@pairs
@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_every_token_is_counted_on_one_side(tool: str, reasoning: str, data: st.DataObject) -> None:
    text = data.draw(texts(tool, reasoning))
    ends = range(1, len(text) + 1)
    parsed = parse(text, *formats(tool, reasoning), ends)
    assert len(parsed.reasoning) <= parsed.num_reasoning_tokens <= len(text)
    if reasoning == "none":
        assert parsed.num_reasoning_tokens == 0


@pairs
@settings(max_examples=3 * EFFORT)
@given(text=st.text(), options=st.fixed_dictionaries({"prompt_tail": st.text(max_size=20)}))
def test_no_text_raises(tool: str, reasoning: str, text: str, options: dict[str, Any]) -> None:
    parse(text, *formats(tool, reasoning), **options)


@pairs
@settings(max_examples=3 * EFFORT)
@given(data=st.data())
def test_what_is_found_can_be_sent(tool: str, reasoning: str, data: st.DataObject) -> None:
    assert_sendable(parse(data.draw(texts(tool, reasoning)), *formats(tool, reasoning)).events)


KINDS: tuple[Any, ...] = ("string", "object", "array", ["number", "string"], None)
PLACES = ("VALUE", '"VALUE"', "'VALUE'")


def hostile_values(turn: int) -> list[tuple[str, str]]:
    """Values and where they are put; of the deep ones, which take most of the time, a few in each
    turn, and all of them with more effort."""
    deep = list(itertools.product(DEEP, PLACES))
    return [*itertools.product(ESCAPES, PLACES), *(deep[turn % 12 :: 12] if EFFORT == 1 else deep)]


@some_tool
def test_no_value_of_a_parameter_raises_and_each_can_be_sent(tool: str) -> None:
    tool_format = TOOLS[tool]
    assert tool_format is not None
    turns = itertools.count(SOME_TOOLS.index(tool))
    for kind, arguments in itertools.product(KINDS, ('{"x": "VALUE"}', '{"x": {"y": "VALUE"}}')):
        schema = {} if kind is None else {"type": kind}
        properties = {"properties": {"x": schema}}
        tools = ToolSchemas([{"function": {"name": "f", "parameters": properties}}])
        text = render_calls(tool_format, [("f", arguments)])
        for value, place in hostile_values(next(turns)):
            hostile = text.replace(place, value)
            for pieces in (hostile, cut(hostile, range(7, len(hostile), 7))):
                parsed = parse(pieces, tool_format, tools=tools)
                assert_sendable(parsed.events)

"""The laws of the machine, as properties over every declared format and a made-up one."""

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
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
from toolparser_worker.machine.declarations import (
    BracedBody,
    ElementBody,
    HeaderBody,
    JsonObjectBody,
    ReasoningFormat,
    ToolFormat,
)
from toolparser_worker.machine.render import render_calls, render_reasoning
from toolparser_worker.machine.tool_schemas import ToolSchemas

NATIVE = {"deepseek_v31": "deepseek_v3", "qwen3_coder": "qwen3", "openai": "openai_gptoss"}
PAIRS = sorted(
    {(tool, "none") for tool in TOOLS}
    | {(tool, NATIVE.get(tool, tool if tool in REASONING else "think")) for tool in TOOLS}
    | {("hermes", reasoning) for reasoning in REASONING}
    | {("none", reasoning) for reasoning in REASONING}
)
pairs = pytest.mark.parametrize(("tool", "reasoning"), PAIRS)
SOME_TOOLS = [name for name in TOOLS if name != "none"]
some_tool = pytest.mark.parametrize("tool", SOME_TOOLS)
EFFORT = int(os.environ.get("FUZZ_EFFORT", "1"))
"""How many times as many examples as usual are tried."""

COMMON_FRAGMENTS = [
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
TOKEN_SIZES = st.lists(st.integers(0, 6), max_size=40)
TAG_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True)


def formats(tool: str, reasoning: str) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    return TOOLS[tool], REASONING[reasoning]


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


def schema_of(value: Any) -> dict[str, Any]:
    """A JSON schema that the value has."""
    if isinstance(value, dict):
        members = {key: schema_of(item) for key, item in value.items()}
        return {"type": "object", "properties": members}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0]) if value else {}}
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, kind):
            return {"type": name}
    return {"type": "null"}


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


def schemas(wanted: Sequence[tuple[str, str]]) -> ToolSchemas:
    """Tools that the calls fit."""
    return ToolSchemas(
        {"function": {"name": name, "parameters": schema_of(json.loads(arguments))}}
        for name, arguments in wanted
    )


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


@pairs
@settings(max_examples=10 * EFFORT)
@given(data=st.data(), cuts=CUTS, sizes=TOKEN_SIZES)
def test_the_cut_of_the_text_changes_nothing(
    tool: str, reasoning: str, data: st.DataObject, cuts: list[int], sizes: list[int]
) -> None:
    text = data.draw(texts(tool, reasoning))
    chosen = formats(tool, reasoning)
    token_ends = list(accumulate(sizes))
    whole = parse(text, *chosen, token_ends)
    assert parse(cut(text, cuts), *chosen, token_ends) == whole
    assert parse(list(text), *chosen, token_ends) == whole


@some_tool
@settings(max_examples=10 * EFFORT)
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


@pytest.mark.parametrize(
    ("tool", "reasoning"),
    [
        (tool, reasoning)
        for tool, reasoning in PAIRS
        if tool != "none" and reasoning not in ("none", "minimax_m2_append_think")
    ],
)
@settings(max_examples=4 * EFFORT)
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
@settings(max_examples=10 * EFFORT)
@given(data=st.data())
def test_nothing_is_lost_but_markers_and_nothing_is_invented(
    tool: str, reasoning: str, data: st.DataObject
) -> None:
    text = data.draw(texts(tool, reasoning))
    tool_format, reasoning_format = formats(tool, reasoning)
    parsed = parse(text, tool_format, reasoning_format)
    is_verbatim = tool_format is not None and all(
        isinstance(body, VERBATIM) and not getattr(body, "unpacks_strings", False)
        for body in tool_format.bodies
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
            assert event.text == "{}"
    for gap in gaps(parsed, text, tool_format):
        assert re.fullmatch(droppable(tool_format, reasoning_format), gap, re.DOTALL), gap


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
@settings(max_examples=10 * EFFORT)
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


def early_text(tool: str, reasoning: str) -> str:
    """A text with all that a text can have."""
    tool_format, reasoning_format = formats(tool, reasoning)
    text = render_reasoning(reasoning_format, "hm < 1") if reasoning_format else ""
    is_framed = (tool_format or reasoning_format or REASONING["think"]).framing is not None  # type: ignore[union-attr]
    if not is_framed and (tool_format is None or tool_format.rendered_start != "["):
        text += "\nO <{1 "
    if tool_format is not None:
        text += render_calls(tool_format, [("f", '{"a": "}<"}')])
    return text


@lru_cache
def endings(tool: str, reasoning: str) -> list[str]:
    """Texts that tell apart whatever can still be told apart."""
    tool_format, reasoning_format = formats(tool, reasoning)
    known = ['"name": "q"}']
    if reasoning_format is not None:
        known += [*reasoning_format.ends, *reasoning_format.starts]
    if tool_format is not None:
        known.append(render_calls(tool_format, [("q", '{"z": 9}')]))
        known += tool_format.body.markers
        known.append(render_calls(tool_format, [("f", '{"a": "again"}')]))
        if reasoning_format is not None:
            call = known[-1]
            known.append(render_reasoning(reasoning_format, "r") + call)
            for start in reasoning_format.starts:
                known.append(f"{start}r{reasoning_format.ends[0]}{call}")
        if isinstance(tool_format.body, BracedBody):
            known += ["[1]}", "{z:1}}"]
        if isinstance(tool_format.body, ElementBody):
            prefix = tool_format.body.tag_prefix
            known.append(f"{prefix}</a>{prefix}<a>more{prefix}</a>{tool_format.body.end}")
    suffixes = {text[size:] for text in known for size in range(len(text))}
    return [*sorted(suffixes), "x", " x", "}", '"', '": ', '"}', '"x": 1}', "}}", ", ", "'", "1"]


def early_positions(text: str) -> list[int]:
    """Some of the places in a text, always the same ones; all of them with more effort."""
    share = min(1.0, 0.1 * EFFORT)
    generator = random.Random(text)
    return [size for size in range(1, len(text) + 1) if generator.random() < share]


TEXT_TOOL = schemas([("f", '{"a": ""}'), ("q", '{"z": 9}')])
FEWER_PAIRS = [
    *((tool, "none") for tool in SOME_TOOLS),
    *(
        (next((tool for tool in SOME_TOOLS if NATIVE.get(tool, tool) == name), "hermes"), name)
        for name in REASONING
        if name != "none"
    ),
]


@pytest.mark.parametrize(("tool", "reasoning"), FEWER_PAIRS)
def test_what_all_completions_have_in_common_is_already_out(tool: str, reasoning: str) -> None:
    chosen = formats(tool, reasoning)
    text = early_text(tool, reasoning)
    for size in early_positions(text):
        machine = new_machine(*chosen, tools=TEXT_TOOL)
        emitted = Parsed()
        emitted.add(machine.feed(text[:size]))
        ends = [
            parse(text[:size] + end, *chosen, tools=TEXT_TOOL)
            for end in (*endings(tool, reasoning), text[size:], "")
        ]
        assert len(emitted.content) >= common_size([end.content for end in ends])
        assert len(emitted.reasoning) >= common_size([end.reasoning for end in ends])
        for index in range(min(len(end.calls) for end in ends)):
            both: list[ParsedCall] = [end.calls[index] for end in ends]
            if len({call.name for call in both}) == 1:
                assert len(emitted.calls) > index
                size_out = common_size([call.arguments for call in both])
                # A string's first quote waits until the marker that stands for it is whole.
                is_braced = chosen[0] is not None and isinstance(chosen[0].body, BracedBody)
                assert len(emitted.calls[index].arguments) >= size_out - is_braced


def common_size(texts: Sequence[str]) -> int:
    """How many characters all these texts begin with alike."""
    low, high = min(texts), max(texts)
    size = 0
    while size < min(len(low), len(high)) and low[size] == high[size]:
        size += 1
    return size


def adversaries(tool: str, reasoning: str) -> dict[str, Callable[[int], str]]:
    """Texts of any length that ask much of the formats."""
    tool_format, reasoning_format = formats(tool, reasoning)
    found: dict[str, Callable[[int], str]] = {
        "content": lambda n: "a < b " * (n // 6),
        "spaces": lambda n: " " * n,
        "objects": lambda n: "{" * n,
        "keys": lambda n: '{"a": ' * (n // 6),
        "brackets": lambda n: "[" * n,
    }
    whole = ""
    if tool_format is not None:
        whole = render_calls(tool_format, [("f", '{"a": "b c"}')])
        found["calls"] = lambda n: whole * (n // len(whole))
    markers = (*(tool_format or REASONING["think"]).markers,)  # type: ignore[union-attr]
    if reasoning_format is not None:
        markers += reasoning_format.markers
    for marker in {*markers}:
        found[f"{marker} again"] = lambda n, m=marker: m * (n // len(m))  # type: ignore[misc]
        found[f"{marker} cut"] = lambda n, m=marker[:-1]: m * (n // (len(m) or 1))  # type: ignore[misc]
    middle = whole.find("b c")
    for place in {len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4, middle}:
        for unit in (" ", "x", '\\"', "{", "'", "1", "<", "\n"):
            found[f"{place} and {unit!r}"] = lambda n, start=whole[:place], u=unit: (  # type: ignore[misc]
                start + u * (n // len(u))
            )
    return found


@pytest.mark.parametrize(("tool", "reasoning"), FEWER_PAIRS)
def test_work_grows_with_the_text_and_no_faster(tool: str, reasoning: str) -> None:
    def operations(text: str, size: int) -> int:
        machine = new_machine(*formats(tool, reasoning))
        for start in range(0, len(text), size):
            machine.feed(text[start : start + size])
        machine.finish()
        return machine.num_operations

    for name, adversary in adversaries(tool, reasoning).items():
        short, long = adversary(200 * EFFORT), adversary(400 * EFFORT)
        for size in (1, 4):
            growth = operations(long, size) - operations(short, size)
            assert growth <= 100 * (len(long) - len(short)), name


@pairs
@settings(max_examples=5 * EFFORT)
@given(data=st.data())
def test_every_token_is_counted_on_one_side(tool: str, reasoning: str, data: st.DataObject) -> None:
    text = data.draw(texts(tool, reasoning))
    ends = range(1, len(text) + 1)
    parsed = parse(text, *formats(tool, reasoning), ends)
    assert len(parsed.reasoning) <= parsed.num_reasoning_tokens <= len(text)
    if reasoning == "none":
        assert parsed.num_reasoning_tokens == 0


@pairs
@settings(max_examples=5 * EFFORT)
@given(text=st.text(), options=st.fixed_dictionaries({"prompt_tail": st.text(max_size=20)}))
def test_no_text_raises(tool: str, reasoning: str, text: str, options: dict[str, Any]) -> None:
    parse(text, *formats(tool, reasoning), **options)

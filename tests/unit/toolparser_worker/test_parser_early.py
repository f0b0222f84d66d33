"""Law 4, for every format: what no further text could change is out already."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tests.fakes.format_pairs import NATIVE, SOME_TOOLS, schemas
from tests.fakes.fuzz_effort import EFFORT
from tests.fakes.loops import of_each
from tests.fakes.parsed_text import MADE_UP, Parsed, ParsedCall, new_machine, parse
from toolparser_worker.formats import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    find_reasoning_format,
    find_tool_format,
)
from toolparser_worker.machine.declarations import (
    BracedBody,
    ElementBody,
    PythonBody,
    ReasoningFormat,
    ToolFormat,
)
from toolparser_worker.machine.render import render_calls, render_reasoning

TEXT_TOOL = schemas([("f", '{"a": ""}'), ("q", '{"z": 9}')])


def early_text(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> str:
    """A text with all that a text can have."""
    text = render_reasoning(reasoning, "hm < 1") if reasoning else ""
    is_framed = any(declared and declared.framing for declared in (tools, reasoning))
    if not is_framed and (tools is None or tools.rendered_start != "["):
        text += "\nO <{1 "
    if tools is not None:
        text += render_calls(tools, [("f", '{"a": "}<"}')])
    return text


@lru_cache
def endings(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> list[str]:
    """Texts that tell apart whatever can still be told apart."""
    known = ['"name": "q"}']
    if reasoning is not None:
        known += [*reasoning.ends, *reasoning.starts]
    if tools is not None:
        known.append(render_calls(tools, [("q", '{"z": 9}')]))
        known += tools.body.markers
        known.append(render_calls(tools, [("f", '{"a": "again"}')]))
        if reasoning is not None:
            call = known[-1]
            known.append(render_reasoning(reasoning, "r") + call)
            for start in reasoning.starts:
                known.append(f"{start}r{reasoning.ends[0]}{call}")
        if isinstance(tools.body, BracedBody):
            known += ["[1]}", "{z:1}}"]
        if isinstance(tools.body, PythonBody):
            known.append(", b=1)")  # after a string, there may be another argument
        if isinstance(tools.body, ElementBody):
            prefix = tools.body.tag_prefix
            known.append(f"{prefix}</a>{prefix}<a>more{prefix}</a>{tools.body.end}")
    suffixes = {text[size:] for text in known for size in range(len(text))}
    return [*sorted(suffixes), "x", " x", "}", '"', '": ', '"}', '"x": 1}', "}}", ", ", "'", "1"]


def names(declared: Mapping[str, ToolFormat | ReasoningFormat]) -> list[str]:
    """Each format by its own name; with more effort by its other names, too, which say other
    places."""
    return sorted(name for name, one in declared.items() if EFFORT > 1 or name == one.name)


def places(text: str, name: str, num_names: int) -> list[int]:
    """Some of the places in a text, other ones for each name; all of them with more effort."""
    generator = random.Random(f"{name} {text}")
    share = min(1.0, 0.02 * EFFORT / num_names)
    found = {size for size in range(1, len(text) + 1) if generator.random() < share}
    return sorted(found | {generator.randint(1, len(text))})


def common_size(texts: Sequence[str]) -> int:
    """How many characters all these texts begin with alike."""
    low, high = min(texts), max(texts)
    size = 0
    while size < min(len(low), len(high)) and low[size] == high[size]:
        size += 1
    return size


def assert_all_is_out(
    tools: ToolFormat | None, reasoning: ReasoningFormat | None, text: str, size: int
) -> None:
    """After so many characters of a text, all that its completions have in common is out."""
    machine = new_machine(tools, reasoning, tools=TEXT_TOOL)
    emitted = Parsed()
    emitted.add(machine.feed(text[:size]))
    ends = [
        parse(text[:size] + end, tools, reasoning, tools=TEXT_TOOL)
        for end in (*endings(tools, reasoning), text[size:], "")
    ]
    assert len(emitted.content) >= common_size([end.content for end in ends])
    assert len(emitted.reasoning) >= common_size([end.reasoning for end in ends])
    for index in range(min(len(end.calls) for end in ends)):
        both: list[ParsedCall] = [end.calls[index] for end in ends]
        if len({call.name for call in both}) == 1:
            assert len(emitted.calls) > index
            size_out = common_size([call.arguments for call in both])
            # A string's first quote waits until the marker that stands for it is whole.
            is_braced = tools is not None and isinstance(tools.body, BracedBody)
            assert len(emitted.calls[index].arguments) >= size_out - is_braced


@of_each("name", [*names(TOOL_FORMATS), MADE_UP.name])
def test_what_all_completions_of_a_tool_format_have_in_common_is_out(name: str) -> None:
    tools = MADE_UP if name == MADE_UP.name else find_tool_format(name)
    assert tools is not None
    text = early_text(tools, None)
    for size in places(text, name, len(tools.aliases) + 1):
        assert_all_is_out(tools, None, text, size)


@of_each("name", names(REASONING_FORMATS))
def test_what_all_completions_of_a_reasoning_format_have_in_common_is_out(name: str) -> None:
    reasoning = find_reasoning_format(name)
    assert reasoning is not None
    native = (tool for tool in SOME_TOOLS if NATIVE.get(tool, tool) == reasoning.name)
    tools = find_tool_format(next(native, "hermes"))
    text = early_text(tools, reasoning)
    for size in places(text, name, len(reasoning.aliases) + 1):
        assert_all_is_out(tools, reasoning, text, size)

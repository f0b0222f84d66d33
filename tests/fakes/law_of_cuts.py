"""Random texts that a pair of formats may stumble over, and the law that no cut of them matters.

Plain seeded random numbers rather than hypothesis: it makes and checks thousands of texts in a
second or two, and a text that breaks the law is made smaller by cutting pieces out of it.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from protocol.wire import codec
from protocol.wire.messages import ParsedBatch, ParsedDelta, ParseEvent
from tests.fakes.fuzz_effort import EFFORT
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.machine import Machine
from toolparser_worker.machine.render import render_calls, render_reasoning
from toolparser_worker.machine.tool_schemas import ToolSchemas

BLANKS = (" ", "\n", "\t", "\r", "\u3000", "\u00a0", "\x85", "\x1c", "\x1d", "\x1e", "\x1f", "\v")
"""White space of JSON, and what only Unicode takes for white space."""

ESCAPES = (
    r"\ud83d",
    r"\ude00",
    r"\ud83d\ude00",
    r'"\ud83d"',
    r"'\udc00'",
    r'{"x": "\udfff"}',
    "\\ud8",
)
"""Escapes of halves of characters, alone and in pairs."""

DEEP = (
    *('{"a":' * 450 + "1" + "}" * 450, "[" * 700 + "]" * 700, "{'a': " * 450 + "1" + "}" * 450),
    *('{"a":' * 450, "[" * 700, "(" * 300),
)
"""Values that nest deeper than Python's own stack goes."""

COMMON_FRAGMENTS = (
    *("<think>", "</think>", "<tool_", "call>", "</", "<", ">", ">>", "</thi", "<|python"),
    *('{"name": "f"', '"name": "g",', '"fn": "h"', '{"tool": "a"}', '{"name": 1'),
    *(', "arguments": {', '"parameters": ', '"args": [1, 2', '{"arguments": {}, ', '"x": '),
    *('{"name": "f", "arguments": {"x": "</tool_call>"}}', '{"name": "f", "parameters": {}}'),
    *("{", "}", "[", "]", ":", ",", '"', "\\", "\\u00", "1e5", "true", "nul", "; ", "é", "🙂"),
    *("word ", "a < b", "\x00", "f(x=1", "f()", "'a'", "x=", ")", "(1", "f", "x", "'", "=", "("),
    *('name="f">', "NAME", "k</arg_key>", "a:1", "call:f{", "functions.f:0", "to=f", "final"),
    *("f(x={'a': 1, 2", "f(x={'a', ", "f(x='''a", "\\'", "r'", "1_0", "-.5", "<![CDATA[", "]]>"),
    *ESCAPES,
    *("f\n", "[f(x=1)]", '[{"name": "f", "arguments": {}}]', '{"x": 1}', "call:f{x:1}", "null"),
    *BLANKS,
)
CALLS = (
    [("f", '{"a": "x", "b": [1, {"c": null}]}')],
    [("f", "{}"), ("g", '{"k": "v w"}')],
    [("f", '{"a": "x"}')],
)
TOOLS = ToolSchemas(
    [
        {
            "function": {
                "name": name,
                "parameters": {
                    "properties": {
                        "a": {"type": "string"},
                        "b": {"type": "array"},
                        "x": {"type": ["integer", "string"]},
                        "o": {"type": "object"},
                        "k": {},
                    }
                },
            }
        }
        for name in ("f", "g")
    ]
)
_NO_TOOLS = ToolSchemas()
_PROMPT_TAILS = ("", "", "", "<think>\n", "</think>\n\n")
Outcome = tuple[Any, ...]
Formats = tuple[ToolFormat | None, ReasoningFormat | None]


def fragments(tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> list[str]:
    """What texts for a pair of formats are made of."""
    markers: list[str] = []
    found: list[str] = []
    if tools is not None:
        markers += tools.markers
        for body in tools.bodies:
            markers += body.markers
        for wanted in CALLS:
            whole = render_calls(tools, wanted)
            found += [whole, whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    if reasoning is not None:
        markers += reasoning.markers
        found.append(render_reasoning(reasoning, "hm"))
    # Texts of a thousand characters take most of the time: `make test` has tests of their own.
    deep = DEEP[:2] if EFFORT > 1 else ()
    return [*COMMON_FRAGMENTS, *deep, *markers * (1 + 40 // (len(markers) or 1)), *found * 2]


def neighbour(text: str, generator: random.Random) -> str:
    """A fragment that is nearly another one."""
    place = generator.randrange(len(text) + 1)
    match generator.randrange(6):
        case 0:
            return text[:place]
        case 1:
            return text[place:]
        case 2:
            return text[:place] + generator.choice(BLANKS) + text[place:]
        case 3:
            return text + text
        case 4:
            return text[:place] + text[place + 1 :]
    return generator.choice(BLANKS) + text + generator.choice(BLANKS)


def random_text(found: Sequence[str], generator: random.Random) -> str:
    """A text of some fragments, a third of which are only nearly so."""
    parts = generator.choices(found, k=generator.randrange(1, 10))
    return "".join(
        neighbour(part, generator) if generator.random() < 0.3 else part for part in parts
    )


def random_pieces(text: str, generator: random.Random) -> list[str]:
    """The text in pieces of random sizes, some of them empty."""
    pieces = []
    start = 0
    largest = generator.choice((2, 4, 12, 40))
    while start < len(text):
        stop = start + generator.randrange(largest + 1)
        pieces.append(text[start:stop])
        start = stop
    return pieces


def outcome(
    pieces: Iterable[str],
    tools: ToolFormat | None,
    reasoning: ReasoningFormat | None,
    options: dict[str, Any],
) -> Outcome:
    """All that the machine says about a text, however it comes."""
    machine = Machine(
        tool_format=tools,
        reasoning_format=reasoning,
        call_id=lambda index, name: call_id("r", 0, index, name=name),
        **options,
    )
    events: list[list[Any]] = []
    offset = 0
    last: list[Any] = ["", [], "", "", -1, -1, -1]
    for piece in (*pieces, None):
        if piece is None:
            found = machine.finish()
        else:
            start, offset = offset, offset + len(piece)
            # Every second character ends a token.
            found = machine.feed(piece, range(start // 2 * 2 + 2, offset + 1, 2))
        assert_sendable(found)
        for event in found:
            kind = event.kind
            if (kind, event.index, event.start) == (last[0], last[-1], last[-2]) and event.text:
                last[1].append(event.text)
                last[-2] = event.end
            else:
                last = [
                    kind,
                    [event.text],
                    event.id,
                    event.name,
                    event.start,
                    event.end,
                    event.index,
                ]
                events.append(last)
    told = [(kind, "".join(texts), *rest) for kind, texts, *rest in events]
    return (told, machine.num_malformed, machine.num_reasoning_tokens, leftovers(machine))


def assert_sendable(events: Iterable[ParseEvent]) -> None:
    """What was found can cross the wire."""
    parsed = ParsedDelta(request_id="r", choice=0, attempt=0, events=tuple(events))
    codec.encode(ParsedBatch(deltas=(parsed,)))


def leftovers(machine: Machine) -> str:
    """What a finished machine still holds; nothing, if all is well."""
    return machine._carry + "".join(machine._held)


def broken_law(
    text: str, chosen: Formats, options: dict[str, Any], generator: random.Random
) -> str | None:
    """How the law fails for a text; None if it holds."""
    whole = outcome([text], *chosen, options)
    if whole[-1]:
        return f"{whole[-1]!r} is left behind"
    for pieces in (list(text), random_pieces(text, generator)):
        other = outcome(pieces, *chosen, options)
        if other != whole:
            return f"{pieces!r}\n  gives {other}\n  whole {whole}"
    return None


def random_options(generator: random.Random) -> dict[str, Any]:
    """How a request may differ beside its text."""
    return {
        "tools": generator.choice((TOOLS, _NO_TOOLS)),
        "prompt_tail": generator.choice(_PROMPT_TAILS),
        "parallel_tool_calls": generator.random() < 0.9,
    }


def find_broken(
    chosen: Formats, num_examples: int, seed: object, check: Callable[..., str | None] = broken_law
) -> tuple[str, dict[str, Any], str] | None:
    """The first random text that breaks the law, made small: the text, its options and how."""
    generator = random.Random(str(seed))
    found = fragments(*chosen)
    for _ in range(num_examples):
        text = random_text(found, generator)
        options = random_options(generator)
        if check(text, chosen, options, generator) is not None:
            text = smaller(text, lambda t: check(t, chosen, options, generator) is not None)  # noqa: B023
            return text, options, check(text, chosen, options, generator) or "only in some cuts"
    return None


def smaller(text: str, is_broken: Callable[[str], bool]) -> str:
    """A text that is broken, too, and from which no piece can be cut."""
    size = len(text) // 2
    while size:
        start = 0
        while start < len(text):
            shorter = text[:start] + text[start + size :]
            if is_broken(shorter):
                text = shorter
            else:
                start += size
        size //= 2
    return text

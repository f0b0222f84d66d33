"""Parses whole texts through the machine in a given cut and joins what comes out."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from protocol.wire.messages import ParseEvent
from toolparser_worker.formats import REASONING_FORMATS, TOOL_FORMATS
from toolparser_worker.machine.call_ids import call_id
from toolparser_worker.machine.declarations import JsonObjectBody, ReasoningFormat, ToolFormat
from toolparser_worker.machine.machine import Machine

MADE_UP = ToolFormat(
    name="made_up",
    body=JsonObjectBody(
        starts=("<<", "<<!"), end=">>", name_keys=("tool", "fn"), argument_keys=("args",)
    ),
    rendered_call_start="<<!",
    rendered_call_end=">>",
)
"""A format that only tests know: two markers, one the beginning of the other; text is kept."""

TOOLS: dict[str, ToolFormat | None] = {
    **{declared.name: declared for declared in TOOL_FORMATS.values()},
    "made_up": MADE_UP,
    "none": None,
}
REASONING: dict[str, ReasoningFormat | None] = {
    **{declared.name: declared for declared in REASONING_FORMATS.values()},
    "none": None,
}


@dataclass
class ParsedCall:
    id: str
    name: str
    start: int
    arguments: str = ""
    is_complete: bool = False
    end: int = -1


@dataclass
class Parsed:
    content: str = ""
    reasoning: str = ""
    calls: list[ParsedCall] = field(default_factory=list)
    events: list[ParseEvent] = field(default_factory=list)
    num_malformed: int = 0
    num_reasoning_tokens: int = 0

    def add(self, events: Iterable[ParseEvent]) -> None:
        for event in events:
            match event.kind:
                case "content":
                    self.content += event.text
                case "reasoning":
                    self.reasoning += event.text
                case "tool_call_start":
                    assert event.index == len(self.calls), "indexes are contiguous"
                    assert event.name
                    self.calls.append(ParsedCall(event.id, event.name, event.start))
                case "tool_call_arguments":
                    assert event.index == len(self.calls) - 1
                    self.calls[event.index].arguments += event.text
                case "tool_call_end":
                    assert not self.calls[event.index].is_complete
                    self.calls[event.index].is_complete = True
                    self.calls[event.index].end = event.end
            self._join(event)

    def _join(self, event: ParseEvent) -> None:
        if self.events and event.kind in ("content", "reasoning", "tool_call_arguments"):
            last = self.events[-1]
            if (last.kind, last.index, last.end) == (event.kind, event.index, event.start):
                self.events[-1] = ParseEvent(
                    kind=event.kind,
                    text=last.text + event.text,
                    index=event.index,
                    start=last.start,
                    end=event.end,
                )
                return
        self.events.append(event)


def new_machine(
    tool_format: ToolFormat | None, reasoning_format: ReasoningFormat | None, **options: Any
) -> Machine:
    options.setdefault("call_id", lambda index, name: call_id("request", 0, index))
    return Machine(tool_format=tool_format, reasoning_format=reasoning_format, **options)


def parse(
    pieces: str | Sequence[str],
    tool_format: ToolFormat | None = None,
    reasoning_format: ReasoningFormat | None = None,
    token_ends: Sequence[int] = (),
    **options: Any,
) -> Parsed:
    """Parses text that comes in these pieces, each with the tokens that end in it."""
    machine = new_machine(tool_format, reasoning_format, **options)
    parsed = Parsed()
    offset = 0
    unsent = list(token_ends)
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        offset += len(piece)
        num_ended = sum(end <= offset for end in unsent)
        parsed.add(machine.feed(piece, unsent[:num_ended]))
        unsent = unsent[num_ended:]
    parsed.add(machine.feed("", unsent))
    parsed.add(machine.finish())
    parsed.num_malformed = machine.num_malformed
    parsed.num_reasoning_tokens = machine.num_reasoning_tokens
    return parsed


def cut(text: str, cuts: Iterable[int]) -> list[str]:
    """The text in pieces, cut at these offsets."""
    places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
    return [text[a:b] for a, b in itertools.pairwise(places)]

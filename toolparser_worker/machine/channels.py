"""Tells for each channel of plain text which markers mean something in it, and what."""

import enum
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from toolparser_worker.machine.declarations import CallBody, ReasoningFormat, ToolFormat
from toolparser_worker.machine.literals import LiteralMatcher, literal_matcher
from toolparser_worker.machine.readers import may_begin
from toolparser_worker.machine.reading import LIST_START

_BARE_OBJECT = "{"
OpenBlock = Literal["none", "before", "after"]


class Channel(enum.Enum):
    """Where plain text goes; `CALLS` drops all but calls, `OUTSIDE` is between messages."""

    CONTENT = enum.auto()
    REASONING = enum.auto()
    DROPPED = enum.auto()
    CALLS = enum.auto()
    OUTSIDE = enum.auto()


class Action(enum.Enum):
    """What a marker asks for."""

    END_REASONING = enum.auto()
    INTERRUPT_REASONING = enum.auto()
    START_REASONING = enum.auto()
    DROP = enum.auto()
    DROP_SPAN = enum.auto()
    OPAQUE_SPAN = enum.auto()
    BLOCK = enum.auto()
    CALL = enum.auto()
    BARE_CALL = enum.auto()
    MESSAGE_START = enum.auto()
    MESSAGE_KIND = enum.auto()
    MESSAGE_END = enum.auto()


@dataclass(slots=True)
class ChannelTable:
    """The markers of one channel.

    Attributes:
        actions: What each of them asks for.
        bodies: The spelling of the calls that they start.
        span_ends: The ends of the spans that they start.
        bare_first: Characters that start a block as the first thing of the answer.
        matcher: Finds them.
    """

    actions: dict[str, Action] = field(default_factory=dict)
    bodies: dict[str, CallBody] = field(default_factory=dict)
    span_ends: dict[str, str] = field(default_factory=dict)
    bare_first: str = ""
    matcher: LiteralMatcher = field(default_factory=lambda: literal_matcher(()))

    def add(self, action: Action, *literals: str) -> None:
        """Gives markers a meaning, unless they have one already."""
        for literal in literals:
            self.actions.setdefault(literal, action)


@lru_cache(maxsize=256)
def _tables_of(
    _tools: ToolFormat, _reasoning: ReasoningFormat, _finds_calls: bool
) -> "dict[tuple[Channel, bool, bool, bool, OpenBlock], ChannelTable]":
    """The tables made so far for a pair of formats, the same for all their streams."""
    return {}


class ChannelTables:
    """Makes the tables of a pair of formats.

    Args:
        tools: How calls are written.
        reasoning: How reasoning is written.
        finds_calls: Whether calls are looked for at all.

    Attributes:
        framing: The messages that the text is made of, if it is.
        is_framed: The text did begin like messages.
        reasoning_ended: There was reasoning, and it is over.
        keeps_message_ends: The ends of messages are content like the rest.
        open_block: Whether a block of calls was left without its end, before or after its first
            call: more of its calls may follow.
        block_bodies: The spelling of the calls that these markers start inside a block.
        needs_calls: A block without calls is no block.
    """

    def __init__(self, tools: ToolFormat, reasoning: ReasoningFormat, finds_calls: bool) -> None:
        self.framing = tools.framing or reasoning.framing
        self.is_framed = self.framing is not None
        self.reasoning_ended = False
        self.keeps_message_ends = False
        self.open_block: OpenBlock = "none"
        self.block_bodies = {start: body for body in tools.bodies for start in body.starts}
        self.needs_calls = tools.listed != "never" or not self.block_bodies
        self._made = _tables_of(tools, reasoning, finds_calls)
        self._tools = tools
        self._reasoning = reasoning
        self._finds_calls = finds_calls
        self._scans_content = finds_calls and not (
            self.framing is not None
            and any(route.to in ("calls", "call", "arguments") for route in self.framing.routes)
        )

    def table(self, channel: Channel) -> ChannelTable:
        """What means something in a channel, as things stand."""
        key = (
            channel,
            self.is_framed,
            self.reasoning_ended,
            self.keeps_message_ends,
            self.open_block,
        )
        table = self._made.get(key)
        if table is None:
            table = self._made[key] = self._make(channel)
        return table

    def _make(self, channel: Channel) -> ChannelTable:
        table = ChannelTable()
        if self.is_framed and self.framing is not None:
            starts, ends = self.framing.starts, self.framing.ends
            table.add(Action.MESSAGE_START, *starts)
            if not self.keeps_message_ends:
                table.add(Action.MESSAGE_END, *ends)
            if self.framing.bare_is_content:
                table.add(Action.MESSAGE_KIND, *self.framing.header_ends)
        if channel is Channel.REASONING:
            self._add_reasoning(table)
        else:
            self._add_content(table, channel)
        table.matcher = literal_matcher(tuple(table.actions))
        return table

    def _add_reasoning(self, table: ChannelTable) -> None:
        reasoning = self._reasoning
        table.add(Action.END_REASONING, *reasoning.ends)
        known: tuple[str, ...] = ()
        if reasoning.calls_end_it and self._finds_calls:
            self._add_calls(table)
            known = tuple(table.bodies) + self._tools.wrapper_starts
        # Where calls are read, a call ends the reasoning, and its mere beginning does not.
        interrupting = (one for one in reasoning.interrupted_by if not one.startswith(known))
        table.add(Action.INTERRUPT_REASONING, *interrupting)
        self._add_spans(table, Action.DROP_SPAN, *reasoning.dropped_spans)
        if reasoning.dropped_spans:
            table.add(Action.DROP, *reasoning.dropped_markers)

    def _add_content(self, table: ChannelTable, channel: Channel) -> None:
        tools, reasoning = self._tools, self._reasoning
        if reasoning.reopens:
            table.add(Action.START_REASONING, *reasoning.starts)
        if reasoning.drops_stray_ends and self.reasoning_ended:
            table.add(Action.DROP, *reasoning.ends)
        for declared in (tools, reasoning):
            table.add(Action.DROP, *declared.dropped_markers)
            self._add_spans(table, Action.DROP_SPAN, *declared.dropped_spans)
        self._add_spans(table, Action.OPAQUE_SPAN, *tools.opaque_spans)
        if not self._finds_calls:
            return
        if self._scans_content or channel is Channel.CALLS or not self.is_framed:
            self._add_calls(table)
            if tools.bare == "first":
                list_start = LIST_START if tools.listed != "never" else ""
                table.bare_first = list_start or _BARE_OBJECT
            elif tools.bare == "anywhere" and may_begin(tools.body, _BARE_OBJECT):
                table.add(Action.BARE_CALL, _BARE_OBJECT)

    def _add_calls(self, table: ChannelTable) -> None:
        tools = self._tools
        table.add(Action.BLOCK, *tools.wrapper_starts)
        if self.open_block == "after":
            table.add(Action.DROP, *tools.wrapper_ends)
        is_bare = not tools.wrapper_starts or tools.wrapper_optional
        for body in tools.bodies:
            for start in body.starts:
                # In the text, only what no text has by chance begins a call.
                if is_bare or (self.open_block != "none" and "<" in start):
                    table.add(Action.CALL, start)
                    table.bodies.setdefault(start, body)

    def _add_spans(self, table: ChannelTable, action: Action, *spans: tuple[str, str]) -> None:
        for start, end in spans:
            table.add(action, start)
            table.span_ends.setdefault(start, end)

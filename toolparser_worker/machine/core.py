"""What all states of the machine share: what is held back, where text goes, what was found."""

import re
from collections.abc import Callable
from typing import Any, Literal

from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.channels import Channel, ChannelTables
from toolparser_worker.machine.declarations import (
    CallBody,
    JsonObjectBody,
    MessageFraming,
    ReasoningFormat,
    ToolFormat,
)
from toolparser_worker.machine.event_log import EventLog, TextKind
from toolparser_worker.machine.literals import LiteralMatcher
from toolparser_worker.machine.output import TextOutput
from toolparser_worker.machine.readers import new_reader
from toolparser_worker.machine.reading import LIST_START, CallReader, PlainText, find_at
from toolparser_worker.machine.token_counter import ReasoningTokenCounter
from toolparser_worker.machine.tool_schemas import ToolSchemas

_GIVEN_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""Ids that the model gives and that clients may give back to its template (Mistral)."""

NO_TOOLS = ToolFormat(name="none", body=JsonObjectBody())
NO_REASONING = ReasoningFormat(name="none", opens="marked")
At = Literal[
    "first header", "header", "lead", "text", "span", "block", "opened", "call", "closing", "broken"
]
"""The states of the machine; `machine.py` has the table of them."""

_NO_FRAMING = MessageFraming(starts=(), header_ends=(), ends=(), routes=())


class MachineCore:
    """The machine without its states (`CallSink`).

    Args:
        tool_format: How calls are written; None leaves them in the text.
        reasoning_format: How reasoning is written; None leaves it in the text.
        call_id: The id of the call with this index and name.
        parallel_tool_calls: False keeps the first call only and drops the others.
        tools: The request's tools, whose schemas say what plain values are.
    """

    def __init__(
        self,
        *,
        tool_format: ToolFormat | None,
        reasoning_format: ReasoningFormat | None,
        call_id: Callable[[int, str], str],
        parallel_tool_calls: bool,
        tools: ToolSchemas,
    ) -> None:
        self.num_malformed = 0
        self.num_operations = 0
        self._tools = tool_format or NO_TOOLS
        self._reasoning = reasoning_format or NO_REASONING
        self._schemas = tools
        self._call_id = call_id
        self._ids: set[str] = set()
        self._parallel_tool_calls = parallel_tool_calls
        self._events = EventLog()
        self._tokens = ReasoningTokenCounter()
        self._output = TextOutput(
            self._events,
            trims_content=self._tools.trims,
            trims_reasoning=self._reasoning.trims,
            finds_calls=tool_format is not None,
            prefix=self._reasoning.content_prefix,
        )
        self._tables = ChannelTables(self._tools, self._reasoning, tool_format is not None)
        self._framing = self._tables.framing or _NO_FRAMING
        self._carry = ""
        self._base = 0
        self._final = False
        self._held: list[str] = []
        self._held_start = 0
        self._num_calls = 0
        self._num_calls_in_block = 0
        self._is_muted = False
        self._is_counted = False
        self._is_second = False
        self._in_block = False
        self._list_state = ""
        self._is_list = False
        self._body: CallBody = self._tools.body
        self._ends: tuple[str, ...] = ()
        self._reader: CallReader[Any] = new_reader(self._tools.body, self, tools)
        self._span_end = ""
        self._emits_span = False
        self._header = ""
        self._channel = Channel.CONTENT
        self._table = self._tables.table(Channel.CONTENT)
        self._at: At = "text"
        self._plain: PlainText | None = None
        self._plain_kind: TextKind = "content"
        self._plain_index = 0
        self._plain_list: list[str] | None = None
        self._plain_blank: list[str] | None = None

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens so far that are reasoning for certain, its markers included."""
        return self._tokens.num_reasoning_tokens

    def _enter(self, channel: Channel) -> None:
        """Sends plain text to a channel from now on, and looks for what may end it."""
        self._channel = channel
        self._table = self._tables.table(channel)
        self._output.enter(channel)

    def _end_reasoning(self, offset: int) -> None:
        self._leave_reasoning(offset)
        self._enter(Channel.CONTENT)

    def _leave_reasoning(self, offset: int) -> None:
        self._tables.reasoning_ended = True
        self._tokens.switch(offset, is_reasoning=False)
        self._output.end_reasoning()

    def _find(self, matcher: LiteralMatcher, text: str, position: int) -> tuple[int, int]:
        """Finds a marker, and counts the characters that were looked at."""
        start, stop = matcher.find(text, position, final=self._final)
        self.num_operations += start - position + min(matcher.max_chars, len(text) - position)
        return start, stop

    def _after_space(
        self, markers: tuple[str, ...], text: str, position: int
    ) -> tuple[int, str | None]:
        """Holds white space back and looks for a marker after it; None while undecided.

        Without a marker there is other text, or no text any more, at the position.
        """
        stop = after_space(text, position)
        self.num_operations += stop - position + 4
        marker, is_cut = find_at(text, stop, markers, final=self._final)
        if not self._held:
            self._held_start = self._base + position
        if stop > position:
            self._held.append(text[position:stop])
        if is_cut or (not marker and stop == len(text) and not self._final):
            return stop, None
        return stop, marker

    def allows(self, name: str) -> bool:
        """Whether a call may have this name where it stands (`CallSink`).

        In reasoning, a call like others of a tool that is none is only talked of.
        """
        unknown = self._body.unknown_names
        if unknown == "text" or (unknown == "call" and self._channel is Channel.REASONING):
            return self._schemas.has(name)
        return True

    def call_started(self, name: str, end: int, given_id: str = "") -> None:
        """The reader is certain of a call (`CallSink`)."""
        if self._channel is Channel.REASONING:
            self._leave_reasoning(self._held_start)
        self._output.drop_blank()
        if self._channel is not Channel.CALLS:
            dropped = self._tools.text_after_calls == "drop"
            self._enter(Channel.DROPPED if dropped else Channel.CONTENT)
        self._num_calls_in_block += 1
        self._list_state = LIST_START if self._is_list else ""
        is_dropped = self._body.unknown_names == "dropped" and not self._schemas.has(name)
        self.num_malformed += is_dropped
        self._is_second = False
        self._is_counted = is_dropped
        self._is_muted = is_dropped or (bool(self._num_calls) and not self._parallel_tool_calls)
        if not self._is_muted:
            index = self._num_calls
            self._num_calls += 1
            call_id = given_id
            if not _GIVEN_ID.fullmatch(given_id) or given_id in self._ids:
                call_id = self._call_id(index, name)
            self._ids.add(call_id)
            self._events.call_start(index, call_id, name, self._held_start, end)

    def _count_malformed(self) -> None:
        """The last call is not as it must be; it counts once, and only if it is told of."""
        if not self._is_muted and not self._is_counted:
            self._is_counted = True
            self.num_malformed += 1

    def call_arguments(self, text: str, start: int, end: int) -> None:
        """The reader has more of the arguments (`CallSink`)."""
        if not self._is_muted:
            self._events.text("tool_call_arguments", text, start, end, self._num_calls - 1)

    def _end_call(self, offset: int) -> None:
        if not self._is_muted:
            self._events.call_end(self._num_calls - 1, offset)

    def _emit(self, piece: str, start: int) -> None:
        if piece:
            self._output.emit(piece, start)

    def _release(self) -> None:
        """Gives what was held back to the channel that it stood in."""
        if self._held:
            held = "".join(self._held)
            self._held.clear()
            self.num_operations += len(held)
            self._emit(held, self._held_start)

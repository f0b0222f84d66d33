"""The incremental machine: model text in any cut in; content, reasoning and tool calls out.

It is a table of states (`_STATES`), each of which takes as much text as it can and answers that it
moved on, or needs more text to tell (`Step`); nothing is inferred from how far it came:

    header ─▶ lead ─▶ text ◀─────────────────────────┐
      ▲ end of      │  │ start of a block or call    │
      └─ a message ─┘  ▼                             │
                     block ◀──────────┐              │
                       │ ▲            │              │
         (opened) ─▶   ▼ │ , or ]     │              │
                      call ─▶ closing ┴──────────────┤ end marker, or something else
                       │ │                           │
                       │ └── no call after all: given back to the channel it stood in
                       └── broken after its name was out ──▶ broken ── end marker

Text that is not decided yet is held back: the beginning of a marker, or a call before its name.
Everything else leaves in the feed that brought it, and no character is looked at more often than
the longest marker is long.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from protocol.wire.messages import ParseEvent
from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.channels import Action, Channel
from toolparser_worker.machine.core import At
from toolparser_worker.machine.declarations import ReasoningFormat, ToolFormat
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.message_states import MessageStates
from toolparser_worker.machine.reading import (
    MORE,
    MOVED,
    Answer,
    PlainText,
    Verdict,
    find_at,
    plain_text,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_ANY_TOOLS = ToolSchemas()


class Machine(MessageStates):
    """Parses the text of one choice; a pure function of its text and its arguments.

    No text makes it raise, and how the text is cut into feeds changes nothing but when events
    come. A call that breaks before its name is out is plain text, character for character; the
    rest of one that breaks later leaves verbatim as arguments.

    Args:
        tool_format: How calls are written; None leaves them in the text.
        reasoning_format: How reasoning is written; None leaves it in the text.
        prompt_tail: The end of the prompt, which may have opened or closed the reasoning.
        thinking: Whether the request switched reasoning on or off; None when it said nothing.
            What the prompt's end shows counts more.
        call_id: The id of the call with this index and name.
        parallel_tool_calls: False keeps the first call only and drops the others.
        tools: The request's tools, whose schemas say what plain values are.

    Attributes:
        num_malformed: Calls so far that broke, or were not finished, after their name was out.
        num_operations: Characters and states visited so far, the measure of its own work.
    """

    def __init__(
        self,
        *,
        tool_format: ToolFormat | None,
        reasoning_format: ReasoningFormat | None,
        call_id: Callable[[int, str], str],
        prompt_tail: str = "",
        thinking: bool | None = None,
        parallel_tool_calls: bool = True,
        tools: ToolSchemas = _ANY_TOOLS,
    ) -> None:
        super().__init__(
            tool_format=tool_format,
            reasoning_format=reasoning_format,
            call_id=call_id,
            parallel_tool_calls=parallel_tool_calls,
            tools=tools,
        )
        self._begin(prompt_tail, thinking)

    @property
    def _lead_markers(self) -> tuple[str, ...]:
        """What may stand before everything else."""
        reasoning = self._reasoning
        starts = reasoning.starts + reasoning.first_starts
        is_stray = self._channel is not Channel.REASONING  # else it ends what the prompt began
        if is_stray and reasoning.opens == "marked" and reasoning.drops_stray_ends:
            return starts + reasoning.ends
        return starts

    def _begin(self, prompt_tail: str, thinking: bool | None) -> None:
        """Finds out where the text begins: in a message's header, in reasoning or in neither."""
        reasoning = self._reasoning
        self._enter(Channel.CONTENT)
        framing = self._tables.framing
        if framing is not None:
            self._at = "first header" if framing.first_header else "header"
            return
        begins = reasoning.begins(prompt_tail, thinking=thinking)
        if begins == "no":
            return
        if self._lead_markers:
            self._at = "lead"
        if begins == "open":
            self._tokens.is_reasoning = True
            self._enter(Channel.REASONING)

    def feed(self, text: str, token_ends: Sequence[int] = ()) -> tuple[ParseEvent, ...]:
        """Takes more text.

        Args:
            text: What follows the text so far.
            token_ends: Offsets in the whole text at which further tokens end, ascending.

        Returns:
            What became certain by it.
        """
        plain = self._plain
        if plain is not None:
            # Only more of what came last, as nearly all of a long stream is.
            if len(text) != 1:
                if text and plain.search(text) is None:
                    return self._take_plain(text, token_ends, self._plain_list)
            elif text not in plain.chars:
                # Character by character is the costliest cut of a text: not a call too many here.
                start = self._base
                self._base = end = start + 1
                self.num_operations += 2
                if token_ends and (self._tokens.is_reasoning or token_ends[-1] > end):
                    self._tokens.add(token_ends)
                    self._tokens.settle(end)
                if self._plain_list is not None:
                    self._plain_list.append(text)
                    return ()
                if self._plain_blank:
                    start, text = _with_blank(self._plain_blank, start, text)
                kind, index = self._plain_kind, self._plain_index
                return (ParseEvent(kind=kind, text=text, index=index, start=start, end=end),)
            elif self._plain_blank is not None and text in plain.blanks:
                return self._take_plain(text, token_ends, self._plain_blank)
        self._tokens.add(token_ends)
        self._run(self._carry + text if self._carry else text)
        undecided = self._held and self._at not in ("text", "closing")
        self._tokens.settle(self._held_start if undecided else self._base)
        self._plain = None if self._carry else self._find_plain()
        return self._events.drain()

    def _take_plain(
        self, text: str, token_ends: Sequence[int], gathers: list[str] | None
    ) -> tuple[ParseEvent, ...]:
        """Takes text that leaves as it is, or is gathered."""
        start = self._base
        self._base = end = start + len(text)
        self.num_operations += len(text) + 1
        if token_ends and (self._tokens.is_reasoning or token_ends[-1] > end):
            self._tokens.add(token_ends)
            self._tokens.settle(end)
        if gathers is not None:
            gathers.append(text)
            return ()
        if self._plain_blank:
            start, text = _with_blank(self._plain_blank, start, text)
        kind, index = self._plain_kind, self._plain_index
        return (ParseEvent(kind=kind, text=text, index=index, start=start, end=end),)

    def _find_plain(self) -> PlainText | None:
        """Which text could only be more of what came last."""
        if self._at == "call":
            if self._is_muted or self._reader.verdict is not Verdict.CALL:
                return None
            found = self._reader.plain()
            if found is None:
                return None
            self._plain_kind = "tool_call_arguments"
            self._plain_index = self._num_calls - 1
            plain, self._plain_list, self._plain_blank = found
            return plain
        if self._at != "text":
            return None
        leaves = self._output.plain()
        if leaves is None or (self._output.awaits_first and self._table.bare_first):
            return None
        self._plain_kind, last = leaves
        self._plain_index = 0
        self._plain_list = self._plain_blank = None
        return plain_text(self._table.matcher.first_chars, last)

    def finish(self) -> tuple[ParseEvent, ...]:
        """No more text will come: decides what was held back."""
        self._final = True
        self._run(self._carry)
        _STATES[self._at].end(self)
        self._output.finish(has_calls=bool(self._num_calls))
        self._tokens.finish()
        return self._events.drain()

    def _run(self, text: str) -> None:
        position = 0
        end = len(text)
        while position < end:
            step, position = _STATES[self._at].take(self, text, position)
            self.num_operations += 1
            if step is MORE:
                break
        self._carry = text[position:]
        self._base += position

    def _lead(self, text: str, position: int) -> Answer:
        """Before anything else: white space, and the start marker of reasoning."""
        position, marker = self._after_space(self._lead_markers, text, position)
        if marker is None:
            return MORE, position
        self._at = "text"
        if not marker:
            self._release()
            return MOVED, position
        if marker in self._reasoning.starts + self._reasoning.first_starts:
            self._tokens.switch(self._held_start, is_reasoning=True)
            self._held.clear()
            self._enter(Channel.REASONING)
        else:
            self._release()
        return MOVED, position + len(marker)

    def _text(self, text: str, position: int) -> Answer:
        """Plain text of the current channel up to the next marker."""
        if self._output.awaits_first and self._table.bare_first:
            stop = after_space(text, position)
            if stop > position:
                self._emit(text[position:stop], self._base + position)
                return MOVED, stop
            markers = tuple(self._table.actions)
            literal, is_cut = find_at(text, position, markers, final=self._final)
            if is_cut:
                return MORE, position
            if not literal and text[position] in self._table.bare_first:
                return self._begin_block("", position, position)
        table = self._table
        start, stop = self._find(table.matcher, text, position)
        if start > position:
            self._emit(text[position:start], self._base + position)
        if stop == start:
            return MORE, start
        return self._act(text[start:stop], start, stop)

    def _act(self, literal: str, start: int, stop: int) -> Answer:
        """Does what a marker in the text asks for."""
        match self._table.actions[literal]:
            case Action.END_REASONING:
                self._end_reasoning(self._base + stop)
            case Action.INTERRUPT_REASONING:
                self._end_reasoning(self._base + start)
                return MOVED, start
            case Action.START_REASONING:
                self._tokens.switch(self._base + start, is_reasoning=True)
                self._enter(Channel.REASONING)
            case Action.DROP:
                pass
            case Action.DROP_SPAN | Action.OPAQUE_SPAN as action:
                self._emits_span = action is Action.OPAQUE_SPAN
                self._span_end = self._table.span_ends[literal]
                self._at = "span"
                if self._emits_span:
                    self._emit(literal, self._base + start)
            case Action.BLOCK:
                return self._begin_block(literal, start, stop)
            case Action.CALL:
                return self._begin_call(self._table.bodies[literal], literal, start, stop)
            case Action.BARE_CALL:
                return self._begin_call(self._tools.body, "", start, start)
            case Action.MESSAGE_START:
                return self._begin_header(literal, start, stop)
            case Action.MESSAGE_KIND:
                return self._begin_header("", start, start)
            case Action.MESSAGE_END:
                self._end_message(self._base + stop)
        return MOVED, stop

    def _span(self, text: str, position: int) -> Answer:
        """Between two markers where nothing is looked for but the second."""
        matcher = literal_matcher((self._span_end,))
        start, stop = self._find(matcher, text, position)
        if self._emits_span and stop > position:
            self._emit(text[position:stop], self._base + position)
        if stop == start:
            return MORE, start
        self._at = "text"
        return MOVED, stop

    # What the end of the text means in a state.

    def _nothing(self) -> None:
        """All that came is out."""

    def _end_in_call(self) -> None:
        reader = self._reader
        if reader.verdict is Verdict.CALL:
            reader.close(self._base)
            if not reader.is_whole or reader.flawed:
                self._count_malformed()
            if reader.is_whole:
                self._end_call(self._base)
        else:
            self._end_attempt()
        self._release()

    def _end_in_block(self) -> None:
        if not self._num_calls_in_block:
            self._release()


class _State(NamedTuple):
    """A state of the machine.

    Attributes:
        take: Takes text from a position on, and answers how it went and how far it came.
        end: Decides what is undecided when the text ends in this state.
    """

    take: Callable[[Machine, str, int], Answer]
    end: Callable[[Machine], None]


_STATES: Final[Mapping[At, _State]] = {
    "first header": _State(Machine._first_header, Machine._release),
    "header": _State(Machine._header_state, Machine._break_header),
    "lead": _State(Machine._lead, Machine._release),
    "text": _State(Machine._text, Machine._nothing),
    "span": _State(Machine._span, Machine._nothing),
    "block": _State(Machine._block, Machine._end_in_block),
    "opened": _State(Machine._opened, Machine._release),
    "call": _State(Machine._call, Machine._end_in_call),
    "closing": _State(Machine._closing, Machine._release),
    "broken": _State(Machine._broken, Machine._nothing),
}


def _with_blank(blank: list[str], start: int, text: str) -> tuple[int, str]:
    """Text and where it starts, with the blanks before it that waited."""
    waited = "".join(blank)
    blank.clear()
    return start - len(waited), waited + text

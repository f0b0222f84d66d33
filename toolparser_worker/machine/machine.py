"""The incremental machine: model text in any cut in; content, reasoning and tool calls out.

It is a table of states, each of which takes as much text as it can:

    lead ──▶ text ◀──────────────────────────────┐
              │ start marker                     │
              ▼                                  │
             call ── `}` ──▶ closing ────────────┤ end marker, or something else
              │ │                                │
              │ └── no call after all: given back to the channel it stood in
              └── broken after its name was out ──▶ broken ── end marker

Text that is not decided yet is held back: the beginning of a marker, or a call before its name.
Everything else leaves in the feed that brought it, and no character is looked at more often than
the longest marker is long.
"""

import enum
import re
from collections.abc import Callable, Iterable

from protocol.messages import ParseEvent
from toolparser_worker.machine.declarations import JsonObjectBody, ReasoningFormat, ToolFormat
from toolparser_worker.machine.event_log import EventLog
from toolparser_worker.machine.json_call import Ending, JsonCallReader, Verdict
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.token_counter import ReasoningTokenCounter

_SPACE = re.compile(r"[ \t\r\n]*+")
_BARE_START = "{"
_NO_TOOLS = ToolFormat(name="none", body=JsonObjectBody())
_NO_REASONING = ReasoningFormat(name="none", start="", end="")


class _Channel(enum.Enum):
    """Where plain text goes."""

    CONTENT = enum.auto()
    REASONING = enum.auto()
    DROPPED = enum.auto()


class Machine:
    """Parses the text of one choice; a pure function of its text and its arguments.

    No text makes it raise, and how the text is cut into feeds changes nothing but when events
    come. A call that breaks before its name is out is plain text, character for character; the
    rest of one that breaks later leaves verbatim as arguments.

    Args:
        tool_format: How calls are written; None leaves them in the text.
        reasoning_format: How reasoning is written; None leaves it in the text.
        prompt_tail: The end of the prompt, which may have opened or closed the reasoning.
        call_id: The id of the call with this index.
        parallel_tool_calls: False keeps the first call only and drops the others.

    Attributes:
        num_malformed: Calls so far that broke, or were not finished, after their name was out.
        num_operations: Characters and states visited so far, the measure of its own work.
    """

    def __init__(
        self,
        *,
        tool_format: ToolFormat | None,
        reasoning_format: ReasoningFormat | None,
        call_id: Callable[[int], str],
        prompt_tail: str = "",
        parallel_tool_calls: bool = True,
    ) -> None:
        self.num_malformed = 0
        self.num_operations = 0
        self._tools = tool_format or _NO_TOOLS
        self._reasoning = reasoning_format or _NO_REASONING
        self._call_id = call_id
        self._parallel_tool_calls = parallel_tool_calls
        self._events = EventLog()
        self._tokens = ReasoningTokenCounter()
        self._carry = ""
        self._base = 0
        self._final = False
        self._held: list[str] = []
        self._held_start = 0
        self._blank: list[tuple[str, int]] = []
        self._has_content = False
        self._num_calls = 0
        self._is_muted = False
        self._reader = JsonCallReader(self._tools.body, self)
        self._reasoning_ended = False
        self._state: Callable[[str, int], int] = self._text
        self._enter(_Channel.CONTENT)
        if reasoning_format is not None and not reasoning_format.closed_by(prompt_tail):
            self._state = self._lead
            if reasoning_format.opens == "always" or reasoning_format.opened_by(prompt_tail):
                self._tokens.is_reasoning = True
                self._enter(_Channel.REASONING)

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens so far that are reasoning for certain, its markers included."""
        return self._tokens.num_reasoning_tokens

    def feed(self, text: str, token_ends: Iterable[int] = ()) -> tuple[ParseEvent, ...]:
        """Takes more text.

        Args:
            text: What follows the text so far.
            token_ends: Offsets in the whole text at which further tokens end, ascending.

        Returns:
            What became certain by it.
        """
        self._tokens.add(token_ends)
        self._run(self._carry + text if self._carry else text)
        undecided = self._held and self._state == self._call
        self._tokens.settle(self._held_start if undecided else self._base)
        return self._events.drain()

    def finish(self) -> tuple[ParseEvent, ...]:
        """No more text will come: decides what was held back."""
        self._final = True
        self._run(self._carry)
        if self._state == self._call:
            if self._reader.verdict is Verdict.CALL:
                self.num_malformed += not self._is_muted
            self._release()
        elif self._state in (self._lead, self._closing):
            self._release()
        if not self._num_calls:
            self._release_blank()
        self._tokens.finish()
        return self._events.drain()

    def _run(self, text: str) -> None:
        position = 0
        end = len(text)
        while position < end:
            state = self._state
            following = state(text, position)
            self.num_operations += 1
            if following == position and self._state == state:
                break
            position = following
        self._carry = text[position:]
        self._base += position

    # States: each takes text from a position on and returns the first position it did not take.

    def _lead(self, text: str, position: int) -> int:
        """Before anything else: white space, and the start marker of reasoning."""
        start = self._reasoning.start
        position, is_there = self._after_space(start, text, position)
        if is_there is None:
            return position
        self._state = self._text
        if not is_there:
            self._release()
            return position
        self._tokens.switch(self._held_start, is_reasoning=True)
        self._held.clear()
        self._enter(_Channel.REASONING)
        return position + len(start)

    def _text(self, text: str, position: int) -> int:
        """Plain text of the current channel up to the next marker."""
        start, stop = self._matcher.find(text, position, final=self._final)
        self.num_operations += start - position + self._matcher.max_chars
        if start > position:
            self._emit(text[position:start], self._base + position)
        if stop == start:
            return start
        literal = text[start:stop]
        reasoning = self._reasoning
        if self._channel is _Channel.REASONING:
            if literal == reasoning.end:
                self._end_reasoning(self._base + stop)
                return stop
            if literal in reasoning.interrupted_by:
                self._end_reasoning(self._base + start)
                return start
        elif literal == reasoning.end:
            return stop
        return self._begin_call(literal, start, stop)

    def _call(self, text: str, position: int) -> int:
        """The body of a call, or of what may become one."""
        reader = self._reader
        stop = reader.feed(text, position, self._base)
        self.num_operations += stop - position
        if reader.verdict is Verdict.UNDECIDED:
            self._held.append(text[position:stop])
        elif reader.verdict is Verdict.TEXT:
            self._release()
            self._emit(text[position:stop], self._base + position)
        else:
            self._held.clear()
        if reader.ending is not Ending.OPEN:
            self._end_body(reader, self._base + stop)
        return stop

    def _closing(self, text: str, position: int) -> int:
        """After the body of a call: white space, and the end marker."""
        end = self._tools.end
        position, is_there = self._after_space(end, text, position)
        if is_there is None:
            return position
        self._state = self._text
        if not is_there:
            self._release()
            return position
        self._held.clear()
        return position + len(end)

    def _broken(self, text: str, position: int) -> int:
        """The rest of a call that broke after its name was out."""
        matcher = literal_matcher((self._tools.end,) if self._tools.end else ())
        start, stop = matcher.find(text, position, final=self._final)
        self.num_operations += start - position + matcher.max_chars
        if start > position:
            at = self._base + position
            self.call_arguments(text[position:start], at, at + start - position)
        if stop > start:
            self._end_call(self._base + start)
            self._state = self._text
        return stop

    def _after_space(self, marker: str, text: str, position: int) -> tuple[int, bool | None]:
        """Holds white space back and looks for a marker after it; None while undecided."""
        stop = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        self.num_operations += stop - position + len(marker)
        if not self._held:
            self._held_start = self._base + position
        if stop > position:
            self._held.append(text[position:stop])
        found = text[stop : stop + len(marker)]
        if found == marker:
            return stop, True
        if marker.startswith(found) and not self._final:
            return stop, None
        return stop, False

    # Transitions.

    def _enter(self, channel: _Channel) -> None:
        """Sends plain text to a channel from now on, and looks for what may end it."""
        self._channel = channel
        tools, reasoning = self._tools, self._reasoning
        if channel is _Channel.REASONING:
            literals = (reasoning.end, *reasoning.interrupted_by)
            if reasoning.calls_end_it:
                literals += tools.starts
        else:
            literals = tools.starts
            if tools.starts_bare:
                literals += (_BARE_START,)
            if reasoning.drops_stray_ends and self._reasoning_ended:
                literals += (reasoning.end,)
        self._matcher = literal_matcher(literals)

    def _end_reasoning(self, offset: int) -> None:
        self._reasoning_ended = True
        self._tokens.switch(offset, is_reasoning=False)
        self._enter(_Channel.CONTENT)

    def _begin_call(self, literal: str, start: int, stop: int) -> int:
        self._reader = JsonCallReader(self._tools.body, self)
        self._state = self._call
        self._held_start = self._base + start
        if literal not in self._tools.starts:
            return start  # A bare start is the body's own first character.
        self._held.append(literal)
        return stop

    def call_started(self, name: str, end: int) -> None:
        """The reader is certain of a call (`CallSink`)."""
        if self._channel is _Channel.REASONING:
            self._end_reasoning(self._held_start)
        self._blank.clear()
        dropped = self._tools.text_after_calls == "drop"
        self._enter(_Channel.DROPPED if dropped else _Channel.CONTENT)
        self._is_muted = bool(self._num_calls) and not self._parallel_tool_calls
        if not self._is_muted:
            index = self._num_calls
            self._num_calls += 1
            self._events.call_start(index, self._call_id(index), name, self._held_start, end)

    def call_arguments(self, text: str, start: int, end: int) -> None:
        """The reader has more of the arguments (`CallSink`)."""
        if not self._is_muted:
            self._events.text("tool_call_arguments", text, start, end, self._num_calls - 1)

    def _end_body(self, reader: JsonCallReader, offset: int) -> None:
        if reader.verdict is Verdict.TEXT:
            self._state = self._text
            return
        if reader.ending is Ending.BROKEN:
            self.num_malformed += not self._is_muted
            self._state = self._broken
            return
        if reader.flawed:
            self.num_malformed += not self._is_muted
        self._end_call(offset)
        self._state = self._closing if self._tools.end else self._text

    def _end_call(self, offset: int) -> None:
        if not self._is_muted:
            self._events.call_end(self._num_calls - 1, offset)

    # Plain text.

    def _emit(self, piece: str, start: int) -> None:
        if self._channel is _Channel.DROPPED or not piece:
            return
        if self._channel is _Channel.REASONING:
            self._events.text("reasoning", piece, start, start + len(piece))
            return
        if not self._has_content and self._tools is not _NO_TOOLS:
            # White space alone before a call is no content, so it waits for what follows.
            if piece.isspace():
                self._blank.append((piece, start))
                return
            self._has_content = True
            self._release_blank()
        self._events.text("content", piece, start, start + len(piece))

    def _release_blank(self) -> None:
        for piece, start in self._blank:
            self._events.text("content", piece, start, start + len(piece))
        self._blank.clear()

    def _release(self) -> None:
        """Gives what was held back to the channel that it stood in."""
        if self._held:
            held = "".join(self._held)
            self._held.clear()
            self.num_operations += len(held)
            self._emit(held, self._held_start)

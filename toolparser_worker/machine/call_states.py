"""The states of the machine in and around calls."""

from typing import Any

from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.channels import Action, Channel
from toolparser_worker.machine.core import MachineCore
from toolparser_worker.machine.declarations import CallBody, JsonObjectBody
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.readers import (
    ends_itself,
    is_repeatable,
    may_begin,
    new_reader,
)
from toolparser_worker.machine.reading import (
    COMMA,
    DONE,
    LIST_END,
    LIST_START,
    MORE,
    MOVED,
    Answer,
    CallReader,
    Ending,
    Verdict,
    find_at,
)


class CallStates(MachineCore):
    """Blocks of calls, lists of calls, and calls."""

    def _begin_block(self, literal: str, start: int, stop: int) -> Answer:
        self._at = "block"
        self._in_block = True
        self._is_list = False
        self._list_state = ""
        self._num_calls_in_block = 0
        self._held_start = self._base + start
        self._held = [literal] if literal else []
        return MOVED, stop

    def _block(self, text: str, position: int) -> Answer:
        """In a block of calls, between them."""
        stop = after_space(text, position)
        self.num_operations += stop - position + 1
        if not self._num_calls_in_block and stop > position:
            self._held.append(text[position:stop])
        if stop == len(text):
            return MOVED, stop
        markers = self._block_markers()
        others = tuple(self._table.actions)
        literal, is_cut = find_at(text, stop, (*markers, *others), final=self._final)
        if is_cut:
            return MORE, stop
        if literal and literal not in markers:
            if self._table.actions[literal] is Action.DROP and self._num_calls_in_block:
                return MOVED, stop + len(literal)
            self._lose_block()  # A marker from outside of blocks ends this one, too.
            return MOVED, stop
        body = self._tables.block_bodies.get(literal) if literal else None
        if body is not None:
            return self._begin_call(body, literal, stop, stop + len(literal))
        if not literal:
            return self._begin_bare(text, stop)
        if not self._num_calls_in_block:
            self._held.append(literal)
        stop += len(literal)
        if literal in self._tools.wrapper_starts:
            return MOVED, stop
        if literal in self._tools.wrapper_ends:
            return self._end_block(stop)
        self._list_state = literal
        self._is_list = self._is_list or literal == LIST_START
        if literal == LIST_END and not self._tools.wrapper_ends:
            return self._end_block(stop)
        return MOVED, stop

    def _block_markers(self) -> tuple[str, ...]:
        """What may come next in a block beside white space."""
        tools = self._tools
        if not self._list_state:
            opening = (LIST_START,) if tools.listed != "never" else ()
            if self._num_calls_in_block:
                # A list that lacks its brackets.
                opening = (COMMA,) if tools.listed == "may" else ()
            # The opening marker may be doubled, or begin a block where the last one's end lacks.
            again = tools.wrapper_starts
            return (*opening, *self._tables.block_bodies, *tools.wrapper_ends, *again)
        if self._list_state == LIST_END:
            return tools.wrapper_ends
        if self._list_state == COMMA or not self._num_calls_in_block:
            list_end = (LIST_END,) if self._is_list else ()
            return (*self._tables.block_bodies, *list_end)
        return (COMMA, LIST_END)

    def _begin_bare(self, text: str, position: int) -> Answer:
        """A call without marker of its own, if one may begin here."""
        tools = self._tools
        in_list = self._list_state in (LIST_START, COMMA)
        after_call = bool(self._num_calls_in_block) and self._list_state != COMMA
        may = in_list if tools.listed == "must" else self._list_state != LIST_END
        if may and not (after_call and self._list_state):
            for body in tools.bodies:
                if not body.starts and may_begin(body, text[position]):
                    return self._begin_call(body, "", position, position)
        if self._num_calls_in_block:
            self._count_malformed()
        self._lose_block()
        return MOVED, position

    def _lose_block(self) -> None:
        """Leaves a block without its end; calls of it that follow are found in the text."""
        self._tables.open_block = "after" if self._num_calls_in_block else "before"
        self._enter(self._channel)
        self._leave_block()

    def _end_block(self, position: int) -> Answer:
        if not self._num_calls_in_block and (
            self._tables.needs_calls or self._channel is Channel.REASONING
        ):
            self._release()
        self._held.clear()
        self._leave_block()
        return MOVED, position

    def _leave_block(self) -> None:
        """Goes back to plain text; what was held for a call that never came is plain text."""
        if not self._num_calls_in_block:
            self._release()
        self._in_block = False
        self._at = "text"

    def _begin_call(
        self, body: CallBody, literal: str, start: int, stop: int, *, keeps_held: bool = False
    ) -> Answer:
        self._body = body
        self._ends = () if ends_itself(body) or not body.end else (body.end,)
        if keeps_held:
            self._ends = self._framing.ends
        tools = self._tools
        self._reader = new_reader(
            body,
            self,
            self._schemas,
            (*self._ends, *tools.wrapper_starts, *tools.wrapper_ends),
            follows_text=self._channel is not Channel.REASONING,
        )
        self._at = "call"
        if not self._in_block and not keeps_held:
            self._held_start = self._base + start
            self._held.clear()
            self._num_calls_in_block = 0
        elif self._num_calls_in_block:
            self._held_start = self._base + start
            self._held.clear()
        if literal:
            self._held.append(literal)
            if is_repeatable(body):
                self._at = "opened"
        return MOVED, stop

    def _opened(self, text: str, position: int) -> Answer:
        """After the start marker of a call, which may be doubled."""
        position, marker = self._after_space(self._body.starts, text, position)
        if marker is None:
            return MORE, position
        if marker:
            self._held.append(marker)
        else:
            self._at = "call"
        return MOVED, position + len(marker)

    def _call(self, text: str, position: int) -> Answer:
        """The body of a call, or of what may become one."""
        reader = self._reader
        step, stop = reader.feed(text, position, self._base, final=self._final)
        self.num_operations += stop - position + 1
        if reader.verdict is Verdict.UNDECIDED:
            if stop > position:
                self._held.append(text[position:stop])
        elif reader.verdict is Verdict.TEXT:
            self._release()
            self._emit(text[position:stop], self._base + position)
        else:
            self._held.clear()
        if step is DONE:
            self._end_body(reader, self._base + stop)
            return MOVED, stop
        return MORE, stop

    def _closing(self, text: str, position: int) -> Answer:
        """After the body of a call: white space, and the end marker."""
        anew = tuple(self._table.actions) + self._tools.wrapper_ends
        position, marker = self._after_space((*self._ends, *anew), text, position)
        if marker is None:
            return MORE, position
        if marker in self._ends:
            self._held.clear()
            self._after_call()
            if marker in self._framing.ends:
                self._end_message(self._base + position + len(marker))
            return MOVED, position + len(marker)
        if not marker and position < len(text):
            is_object = isinstance(self._body, JsonObjectBody) and text[position] == "{"
            if is_object and not self._in_block and self._body.end in self._ends:
                # Two calls between one pair of markers.
                self._is_second = True
                return self._begin_call(self._body, "", position, position)
            self._count_malformed()
        if not self._in_block:
            self._release()
        self._held.clear()
        self._after_call()
        return MOVED, position

    def _broken(self, text: str, position: int) -> Answer:
        """The rest of a call that broke after its name was out."""
        matcher = literal_matcher((*self._ends, *self._tools.wrapper_ends))
        start, stop = self._find(matcher, text, position)
        if start > position and self._reader.takes_rest:
            at = self._base + position
            self.call_arguments(text[position:start], at, at + start - position)
        if stop == start:
            return MORE, start
        self._end_call(self._base + start)
        literal = text[start:stop]
        self._after_call()
        if literal in self._tools.wrapper_ends:
            self._leave_block()
        if literal in self._framing.ends:
            self._end_message(self._base + stop)
        return MOVED, stop

    def _end_message(self, offset: int) -> None:
        """A message of the text's framing ends."""
        if self._channel is Channel.REASONING:
            self._leave_reasoning(offset)
        self._tables.keeps_message_ends = False
        self._enter(Channel.OUTSIDE)
        self._at = "text"

    def _end_body(self, reader: CallReader[Any], offset: int) -> None:
        if reader.verdict is Verdict.TEXT:
            self._end_attempt()
            if self._in_block:
                self._lose_block()
            self._at = "text"
            return
        if reader.ending is Ending.BROKEN:
            self._count_malformed()
            if reader.writes_json:
                reader.close(offset)
            self._at = "broken"
            return
        if reader.flawed:
            self._count_malformed()
        self._end_call(offset)
        if self._ends:
            self._at = "closing"
        else:
            self._after_call()

    def _end_attempt(self) -> None:
        """What began like a call is none: where that leaves it out, the call before is flawed."""
        if self._is_second or self._num_calls_in_block or self._channel is Channel.DROPPED:
            self._is_second = False
            self._count_malformed()

    def _after_call(self) -> None:
        """Goes back to the block that the call stood in, or to plain text."""
        tools = self._tools
        is_over = not self._list_state and tools.wrapper_starts and not tools.wrapper_ends
        if not self._in_block or is_over:
            self._in_block = False
            self._at = "text"
        else:
            self._at = "block"

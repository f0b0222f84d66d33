"""The states of the machine in and around calls."""

from typing import Any

from toolparser_worker.machine.core import MachineCore
from toolparser_worker.machine.declarations import CallBody
from toolparser_worker.machine.json_value import after_space
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.readers import ends_itself, may_begin, new_reader
from toolparser_worker.machine.reading import (
    COMMA,
    LIST_END,
    LIST_START,
    CallReader,
    Ending,
    Verdict,
    find_at,
)


class CallStates(MachineCore):
    """Blocks of calls, lists of calls, and calls."""

    def _begin_block(self, literal: str, start: int, stop: int) -> int:
        self._state = self._block
        self._in_block = True
        self._list_state = ""
        self._num_calls_in_block = 0
        self._held_start = self._base + start
        self._held = [literal] if literal else []
        return stop

    def _block(self, text: str, position: int) -> int:
        """In a block of calls, between them."""
        stop = after_space(text, position)
        self.num_operations += stop - position + 1
        if not self._num_calls_in_block and stop > position:
            self._held.append(text[position:stop])
        if stop == len(text):
            return stop
        literal, is_cut = find_at(text, stop, self._block_markers(), final=self._final)
        if is_cut:
            return stop
        body = self._tables.block_bodies.get(literal) if literal else None
        if body is not None:
            return self._begin_call(body, literal, stop, stop + len(literal))
        if not literal:
            return self._begin_bare(text, stop)
        if not self._num_calls_in_block:
            self._held.append(literal)
        stop += len(literal)
        if literal in self._tools.wrapper_starts:
            return stop
        if literal in self._tools.wrapper_ends:
            return self._end_block(stop)
        self._list_state = literal
        if literal == LIST_END and not self._tools.wrapper_ends:
            return self._end_block(stop)
        return stop

    def _block_markers(self) -> tuple[str, ...]:
        """What may come next in a block, white space aside."""
        tools = self._tools
        if not self._list_state:
            opening = (LIST_START,) if tools.listed != "never" else ()
            if self._num_calls_in_block:
                opening = ()
            again = tools.wrapper_starts if self._num_calls_in_block else ()
            return (*opening, *self._tables.block_bodies, *tools.wrapper_ends, *again)
        if self._list_state == LIST_END:
            return tools.wrapper_ends
        if self._list_state == COMMA or not self._num_calls_in_block:
            return (*self._tables.block_bodies, LIST_END)
        return (COMMA, LIST_END)

    def _begin_bare(self, text: str, position: int) -> int:
        """A call without marker of its own, if one may begin here."""
        tools = self._tools
        in_list = self._list_state in (LIST_START, COMMA)
        after_call = bool(self._num_calls_in_block) and self._list_state != COMMA
        may = in_list if tools.listed == "must" else self._list_state != LIST_END
        if may and not (after_call and self._list_state):
            for body in tools.bodies:
                if not body.starts and may_begin(body, text[position]):
                    return self._begin_call(body, "", position, position)
        self._leave_block()
        return position

    def _end_block(self, position: int) -> int:
        if not self._num_calls_in_block and self._tables.needs_calls:
            self._release()
        self._held.clear()
        self._leave_block()
        return position

    def _leave_block(self) -> None:
        """Goes back to plain text; what was held for a call that never came is plain text."""
        if not self._num_calls_in_block:
            self._release()
        self._in_block = False
        self._state = self._text

    def _begin_call(
        self, body: CallBody, literal: str, start: int, stop: int, *, keeps_held: bool = False
    ) -> int:
        self._body = body
        self._ends = () if ends_itself(body) or not body.end else (body.end,)
        if keeps_held:
            self._ends = self._framing.ends
        self._reader = new_reader(body, self, self._schemas)
        self._state = self._call
        if not self._in_block and not keeps_held:
            self._held_start = self._base + start
            self._held.clear()
            self._num_calls_in_block = 0
        elif self._num_calls_in_block:
            self._held_start = self._base + start
            self._held.clear()
        if literal:
            self._held.append(literal)
        return stop

    def _call(self, text: str, position: int) -> int:
        """The body of a call, or of what may become one."""
        reader = self._reader
        stop = reader.feed(text, position, self._base, final=self._final)
        self.num_operations += stop - position + 1
        if reader.verdict is Verdict.UNDECIDED:
            if stop > position:
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
        position, marker = self._after_space(self._ends, text, position)
        if marker is None:
            return position
        if not marker and not self._in_block:
            self._release()
        self._held.clear()
        self._after_call()
        if marker in self._framing.ends:
            self._end_message(self._base + position + len(marker))
        return position + len(marker)

    def _broken(self, text: str, position: int) -> int:
        """The rest of a call that broke after its name was out."""
        matcher = literal_matcher((*self._ends, *self._tools.wrapper_ends))
        start, stop = self._find(matcher, text, position)
        if start > position:
            at = self._base + position
            self.call_arguments(text[position:start], at, at + start - position)
        if stop > start:
            self._end_call(self._base + start)
            literal = text[start:stop]
            self._after_call()
            if literal in self._tools.wrapper_ends:
                self._leave_block()
            if literal in self._framing.ends:
                self._end_message(self._base + stop)
        return stop

    def _end_body(self, reader: CallReader[Any], offset: int) -> None:
        if reader.verdict is Verdict.TEXT:
            self._in_block = False
            self._state = self._text
            return
        if reader.ending is Ending.BROKEN:
            self.num_malformed += not self._is_muted
            self._state = self._broken
            return
        if reader.flawed:
            self.num_malformed += not self._is_muted
        self._end_call(offset)
        if self._ends:
            self._state = self._closing
        else:
            self._after_call()

    def _after_call(self) -> None:
        """Goes back to the block that the call stood in, or to plain text."""
        tools = self._tools
        is_over = not self._list_state and tools.wrapper_starts and not tools.wrapper_ends
        if not self._in_block or is_over:
            self._in_block = False
            self._state = self._text
        else:
            self._state = self._block

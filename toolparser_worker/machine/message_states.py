"""The states of the machine in the headers of messages, which say what the messages are."""

import re

from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.call_states import CallStates
from toolparser_worker.machine.channels import Channel
from toolparser_worker.machine.core import NO_REASONING, NO_TOOLS
from toolparser_worker.machine.declarations import HeaderBody
from toolparser_worker.machine.header_call import NamedCallReader
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.names import MAX_NAME_CHARS
from toolparser_worker.machine.reading import MORE, MOVED, Answer, find_at

_NAMED = HeaderBody()
"""What is left of a call whose name stood in the message's header."""


class MessageStates(CallStates):
    """Headers of messages."""

    def _first_header(self, text: str, position: int) -> Answer:
        """At the beginning of a text that may be made of messages."""
        framing = self._framing
        stop = after_space(text, position)
        self.num_operations += stop - position + 4
        if not self._held:
            self._held_start = self._base + position
        if stop > position:
            self._held.append(text[position:stop])
        if stop == len(text):
            return MOVED, stop
        openings = (*framing.starts, *framing.first_header)
        literal, is_cut = find_at(text, stop, openings, final=self._final)
        if is_cut:
            return MORE, stop
        if not literal:
            self._tables.is_framed = False
            self._enter(Channel.CONTENT)
            self._at = "text"
            self._release()
            return MOVED, stop
        self._at = "header"
        if literal in framing.starts:
            self._held.append(literal)
            return MOVED, stop + len(literal)
        return MOVED, stop

    def _begin_header(self, literal: str, start: int, stop: int) -> Answer:
        if self._channel is Channel.REASONING:
            self._leave_reasoning(self._base + start)
        self._held_start = self._base + start
        self._held = [literal] if literal else []
        self._header = ""
        self._at = "header"
        return MOVED, stop

    def _header_state(self, text: str, position: int) -> Answer:
        """In the header of a message."""
        framing = self._framing
        matcher = literal_matcher((*framing.header_ends, *framing.ends, *framing.starts))
        start, stop = self._find(matcher, text, position)
        last = position + MAX_NAME_CHARS - len(self._header)
        is_over = start > last
        if is_over:
            start = stop = last
        if start > position:
            self._held.append(text[position:start])
            self._header += text[position:start]
        literal = text[start:stop]
        if literal in framing.header_ends:
            self._held.append(literal)
            self._header += literal
            self._begin_message(stop)
            return MOVED, stop
        if not literal and not is_over:
            return MORE, start
        self._break_header()
        self._at = "text"
        if framing.bare_is_content and literal in framing.ends:
            return MOVED, stop
        return MOVED, start

    def _break_header(self) -> None:
        """What was taken for a header is none, but text."""
        self._enter(Channel.CONTENT)
        if self._framing.bare_is_content:
            self._held_start += sum(map(len, self._held)) - len(self._header)
            self._held = [self._header]
        self._release()

    def _begin_message(self, position: int) -> None:
        """A header is complete: finds out what follows it."""
        to, name = "content", ""
        for route in self._framing.routes:
            match = re.fullmatch(route.header, self._header, re.DOTALL)
            if match is not None:
                to, name = route.to, match.groupdict().get("name") or ""
                break
        else:
            self._break_header()
            self._at = "text"
            return
        at = self._base + position
        self._at = "text"
        if to in ("calls", "call", "arguments") and self._tools is NO_TOOLS:
            self._enter(Channel.CONTENT)
            self._release()
            self._tables.keeps_message_ends = True
            self._enter(Channel.CONTENT)
            return
        if to == "call":
            self._begin_call(self._tools.body, "", position, position, keeps_held=True)
            return
        self._held.clear()
        if to == "arguments":
            self._enter(Channel.CONTENT)
            self._ends = self._framing.ends
            self._in_block = False
            self._at = "call"
            self._body = _NAMED
            self._reader = NamedCallReader(name, at, self, (*self._ends, *self._framing.starts))
        elif to == "reasoning" and self._reasoning is not NO_REASONING:
            self._tokens.switch(self._held_start, is_reasoning=True)
            self._enter(Channel.REASONING)
        elif to == "calls":
            self._enter(Channel.CALLS)
        else:
            self._enter(Channel.CONTENT if to == "content" else Channel.DROPPED)

"""The states of the machine in the headers of messages, which say what the messages are."""

import re

from toolparser_worker.machine.call_states import CallStates
from toolparser_worker.machine.channels import Channel
from toolparser_worker.machine.core import NO_REASONING, NO_TOOLS
from toolparser_worker.machine.header_call import ArgumentsReader
from toolparser_worker.machine.json_value import after_space
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.reading import MAX_NAME_CHARS, find_at


class MessageStates(CallStates):
    """Headers of messages."""

    def _first_header(self, text: str, position: int) -> int:
        """At the beginning of a text that may be made of messages."""
        framing = self._framing
        stop = after_space(text, position)
        self.num_operations += stop - position + 4
        if not self._held:
            self._held_start = self._base + position
        if stop > position:
            self._held.append(text[position:stop])
        if stop == len(text):
            return stop
        openings = (*framing.starts, *framing.first_header)
        literal, is_cut = find_at(text, stop, openings, final=self._final)
        if is_cut:
            return stop
        if not literal:
            self._tables.is_framed = False
            self._enter(Channel.CONTENT)
            self._state = self._text
            self._release()
            return stop
        self._state = self._header_state
        if literal in framing.starts:
            self._held.append(literal)
            return stop + len(literal)
        return stop

    def _begin_header(self, literal: str, start: int, stop: int) -> int:
        if self._channel is Channel.REASONING:
            self._leave_reasoning(self._base + start)
        self._held_start = self._base + start
        self._held = [literal] if literal else []
        self._header = ""
        self._state = self._header_state
        return stop

    def _header_state(self, text: str, position: int) -> int:
        """In the header of a message."""
        framing = self._framing
        matcher = literal_matcher((*framing.header_ends, *framing.ends, *framing.starts))
        start, stop = self._find(matcher, text, position)
        if start > position:
            self._held.append(text[position:start])
            self._header += text[position:start]
        literal = text[start:stop]
        if literal in framing.header_ends and len(self._header) <= MAX_NAME_CHARS:
            self._held.append(literal)
            self._header += literal
            self._begin_message(stop)
            return stop
        if literal or len(self._header) > MAX_NAME_CHARS:
            self._break_header()
            self._state = self._text
            if framing.bare_is_content and literal in framing.ends:
                return stop
        return start

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
            self._state = self._text
            return
        at = self._base + position
        self._state = self._text
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
            self._state = self._call
            self._reader = ArgumentsReader(name, at, self)
        elif to == "reasoning" and self._reasoning is not NO_REASONING:
            self._tokens.switch(self._held_start, is_reasoning=True)
            self._enter(Channel.REASONING)
        elif to == "calls":
            self._enter(Channel.CALLS)
        else:
            self._enter(Channel.CONTENT if to == "content" else Channel.DROPPED)

    def _end_message(self, offset: int) -> None:
        if self._channel is Channel.REASONING:
            self._leave_reasoning(offset)
        self._tables.keeps_message_ends = False
        self._enter(Channel.OUTSIDE)
        self._state = self._text

"""Reads one tool call whose name stands in a header before plain JSON arguments."""

import re

from toolparser_worker.machine.declarations import HeaderBody
from toolparser_worker.machine.json_value import JsonValueScanner, after_space
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.reading import (
    MAX_NAME_CHARS,
    NEEDS_ESCAPE,
    CallReader,
    CallSink,
    Ending,
    Plain,
    Verdict,
    find_at,
    plain_text,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_BARE_ARGUMENTS = "{"
_IN_STRING = plain_text(NEEDS_ESCAPE)


class HeaderCallReader(CallReader[HeaderBody]):
    """Reads the header, then hands the arguments on verbatim (`CallReader`).

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
    """

    def __init__(self, body: HeaderBody, sink: CallSink, tools: ToolSchemas) -> None:
        super().__init__(body, sink, tools)
        self._state = self._in_header
        self._header = ""
        self._scanner = JsonValueScanner()
        bare = (_BARE_ARGUMENTS,) if body.bare_arguments else ()
        self._separators = literal_matcher((*body.separators, *bare, body.end or "\0"))

    def plain(self) -> Plain | None:
        """Text within a string of the arguments (`CallReader`)."""
        if self._state == self._in_arguments and self._scanner.in_string:
            return Plain(_IN_STRING)
        return None

    def _in_header(self, text: str, position: int) -> int:
        start, stop = self._separators.find(text, position, final=self._final)
        self._header += text[position:start]
        separator = text[start:stop]
        if len(self._header) > MAX_NAME_CHARS:
            return self._break(start)
        if not separator:
            return start
        match = re.fullmatch(self._body.header, self._header.strip())
        if match is None or separator == self._body.end:
            return self._break(start)
        name = match["name"]
        if not self._tools.allows(name, self._body):
            return self._break(start)
        self.verdict = Verdict.CALL
        self._state = self._before_arguments
        bare = separator == _BARE_ARGUMENTS
        self._sink.call_started(name, self._base + (start if bare else stop))
        return start if bare else stop

    def _before_arguments(self, text: str, position: int) -> int:
        position = after_space(text, position)
        if position == len(text):
            return position
        # A format may have more than one text between header and arguments.
        separator, is_cut = find_at(text, position, self._body.separators, final=self._final)
        if is_cut:
            return position
        if separator:
            return position + len(separator)
        self._state = self._in_arguments
        return position

    def _in_arguments(self, text: str, position: int) -> int:
        scanner = self._scanner
        stop = scanner.feed(text, position)
        if stop > position:
            self._sink.call_arguments(text[position:stop], self._base + position, self._base + stop)
        if scanner.broken:
            return self._break(stop)
        if scanner.done:
            self.flawed = scanner.flawed
            self._state = self._after_arguments
            if not self._body.tails:
                self.ending = Ending.COMPLETE
        return stop

    def _after_arguments(self, text: str, position: int) -> int:
        stop = after_space(text, position)
        tail, is_cut = find_at(text, stop, self._body.tails, final=self._final)
        if not is_cut and (stop < len(text) or self._final):
            self.ending = Ending.COMPLETE
        return stop + len(tail)


class ArgumentsReader(HeaderCallReader):
    """Reads the arguments of a call whose name is known already (`CallReader`).

    Args:
        name: The tool's name.
        offset: Where the arguments begin in the whole text.
        sink: Is told the name and the arguments.
    """

    def __init__(self, name: str, offset: int, sink: CallSink) -> None:
        super().__init__(HeaderBody(), sink, ToolSchemas())
        self.verdict = Verdict.CALL
        self._state = self._before_arguments
        sink.call_started(name, offset)

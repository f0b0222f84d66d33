"""Reads one tool call whose name stands in a header before plain JSON arguments."""

import re

from toolparser_worker.machine.arguments import NO_ARGUMENTS, ArgumentsScanner
from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.declarations import HeaderBody
from toolparser_worker.machine.names import NameReader
from toolparser_worker.machine.reading import (
    DONE,
    MORE,
    MOVED,
    NEEDS_ESCAPE,
    Answer,
    CallReader,
    CallSink,
    Plain,
    Verdict,
    find_at,
    plain_text,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_BARE_ARGUMENTS = "{"
_IN_STRING = plain_text(NEEDS_ESCAPE)


class HeaderCallReader(CallReader[HeaderBody]):
    """Reads the header, then hands the arguments on (`CallReader`).

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: What may follow arguments that are missing.
    """

    writes_json = False

    def __init__(
        self, body: HeaderBody, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        super().__init__(body, sink, tools, (*stops, *body.tails))
        self._state = self._in_name
        self._name = ""
        bare = (_BARE_ARGUMENTS,) if body.bare_arguments else ()
        self._begins = (*body.separators, *bare)
        ends = (*self._begins, body.id_start) if body.id_start else self._begins
        self._reader = NameReader(ends, lead=body.header_start)
        self._arguments = ArgumentsScanner(sink.call_arguments)

    @property
    def is_whole(self) -> bool:
        """After its arguments, or without any where no end marker is due (`CallReader`)."""
        if self._state == self._before_arguments:
            return not self._body.end
        return self._state == self._after_arguments

    @property
    def takes_rest(self) -> bool:
        """Until the arguments are complete (`CallReader`)."""
        return not self._arguments.done

    def close(self, offset: int) -> None:
        """Gives a call whose arguments have not begun an empty object (`CallReader`)."""
        if self.verdict is Verdict.CALL and self._state == self._before_arguments:
            self._sink.call_arguments(NO_ARGUMENTS, offset, offset)

    def plain(self) -> Plain | None:
        """Text within a string of the arguments (`CallReader`)."""
        if self._state == self._in_arguments and self._arguments.is_plain:
            return Plain(_IN_STRING)
        return None

    def _in_name(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        body = self._body
        match = re.fullmatch(body.header, self._reader.name)
        if not self._reader.end or match is None or not self._sink.allows(match["name"]):
            return self._break(position)
        self._name = match["name"]
        if self._reader.end == body.id_start:
            self._reader = NameReader(self._begins)
            self._state = self._in_id
            return MOVED, position + len(body.id_start)
        return self._end_header(position, "")

    def _in_id(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        if not self._reader.end:
            return self._break(position)
        return self._end_header(position, self._reader.name)

    def _end_header(self, position: int, given_id: str) -> Answer:
        if self._reader.end != _BARE_ARGUMENTS:
            position += len(self._reader.end)
        self._start(self._name, self._base + position, given_id)
        self._state = self._before_arguments
        return MOVED, position

    def _before_arguments(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        # A format may have more than one text between header and arguments.
        between = (*self._body.separators, *self._stops)
        literal, is_cut = find_at(text, position, between, final=self._final)
        if is_cut:
            return MORE, position
        if literal in self._stops:
            at = self._base + position
            self._sink.call_arguments(NO_ARGUMENTS, at, at)
            self._state = self._after_arguments
        elif literal:
            position += len(literal)
        else:
            self._state = self._in_arguments
        return MOVED, position

    def _in_arguments(self, text: str, position: int) -> Answer:
        arguments = self._arguments
        stop = arguments.feed(text, position, self._base)
        if arguments.broken:
            return self._break(stop)
        if not arguments.done:
            return MORE, stop
        self.flawed = arguments.flawed
        self._state = self._after_arguments
        return (MOVED, stop) if self._body.tails else self._complete(stop)

    def _after_arguments(self, text: str, position: int) -> Answer:
        stop = after_space(text, position)
        if stop == len(text):
            return MOVED, stop
        tail, is_cut = find_at(text, stop, self._body.tails, final=self._final)
        if is_cut:
            return MORE, stop
        return self._complete(stop + len(tail))


class NamedCallReader(HeaderCallReader):
    """Reads the arguments of a call whose name is known already (`CallReader`).

    Args:
        name: The tool's name.
        offset: Where the arguments begin in the whole text.
        sink: Is told the name and the arguments.
        stops: What may follow arguments that are missing.
    """

    def __init__(self, name: str, offset: int, sink: CallSink, stops: tuple[str, ...]) -> None:
        super().__init__(HeaderBody(), sink, ToolSchemas(), stops)
        self._state = self._before_arguments
        self._start(name, offset)

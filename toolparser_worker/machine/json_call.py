"""Reads one tool call that is spelt as a JSON object, name and arguments in either order."""

import enum
import json

from toolparser_worker.machine.declarations import JsonObjectBody
from toolparser_worker.machine.json_string import JsonStringDecoder
from toolparser_worker.machine.json_value import JsonValueScanner, after_space
from toolparser_worker.machine.reading import (
    NEEDS_ESCAPE,
    CallReader,
    CallSink,
    Ending,
    Plain,
    Verdict,
    plain_text,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_IN_STRING = plain_text(NEEDS_ESCAPE)


class _Role(enum.Enum):
    KEY = enum.auto()
    NAME = enum.auto()
    ARGUMENTS = enum.auto()
    OTHER = enum.auto()


class JsonCallReader(CallReader[JsonObjectBody]):
    """Follows one JSON object and tells whether it is a call.

    Arguments are handed on verbatim as they come; those that come before the name wait for it.
    An object that turns out to be no call is still followed to its end, so that what is nested
    in it is not taken for one.

    It is long because each state of the automaton is a method.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
    """

    def __init__(self, body: JsonObjectBody, sink: CallSink, tools: ToolSchemas) -> None:
        super().__init__(body, sink, tools)
        self._state = self._before_object
        self._role = _Role.KEY
        self._scanner = JsonValueScanner()
        self._captured: list[str] = []
        self._name: str | None = None
        self._has_arguments = False
        self._early_arguments: list[str] = []
        self._arguments_start = 0
        self._unpacker: JsonStringDecoder | None = None
        self._unpacked_end = 0

    def plain(self) -> Plain | None:
        """Text within a string of the arguments (`CallReader`)."""
        if (
            self._role is _Role.ARGUMENTS
            and self.verdict is Verdict.CALL
            and self._unpacker is None
            and self._scanner.in_string
            and self._state == self._in_value
        ):
            return Plain(_IN_STRING)
        return None

    def _next_char(self, text: str, position: int) -> tuple[str, int]:
        """Skips white space; the character there, or nothing at the end of the text."""
        position = after_space(text, position)
        return text[position : position + 1], position

    def _before_object(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        if char == "{":
            self._state = self._first_key
            return position + 1
        return self._break_at(char, position)

    def _first_key(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        if char == "}":
            return self._close(position)
        return self._begin_key(char, position)

    def _next_key(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        return self._begin_key(char, position)

    def _begin_key(self, char: str, position: int) -> int:
        if char != '"':
            return self._break_at(char, position)
        self._begin_value(_Role.KEY)
        return position

    def _before_colon(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        if char != ":":
            return self._break_at(char, position)
        self._state = self._before_value
        if self._role is _Role.ARGUMENTS:
            self._has_arguments = True
            self._decide(self._base + position + 1)
        return position + 1

    def _before_value(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        if char:
            if self._role is _Role.ARGUMENTS:
                self._arguments_start = self._base + position
                if char == '"' and self._body.unpacks_strings:
                    self._unpacker = JsonStringDecoder()
                    self._unpacked_end = self._arguments_start
            self._begin_value(self._role)
        return position

    def _begin_value(self, role: _Role) -> None:
        self._role = role
        self._scanner = JsonValueScanner()
        self._captured = []
        self._state = self._in_value

    def _in_value(self, text: str, position: int) -> int:
        scanner = self._scanner
        stop = scanner.feed(text, position)
        if stop > position:
            if self._role is _Role.ARGUMENTS:
                self._take_arguments(text[position:stop], self._base + position)
            elif self._role is not _Role.OTHER:
                self._captured.append(text[position:stop])
        if scanner.broken:
            return self._break_at(text[stop], stop)
        if scanner.done:
            self._end_value(stop)
        return stop

    def _take_arguments(self, piece: str, start: int) -> None:
        end = start + len(piece)
        if self._unpacker is not None:
            piece = self._unpacker.feed(piece)
            if not piece:
                return  # Its text belongs to what comes out with the next piece.
            start, self._unpacked_end = self._unpacked_end, end
        if self.verdict is Verdict.CALL:
            self._sink.call_arguments(piece, start, end)
        elif self.verdict is Verdict.UNDECIDED:
            self._early_arguments.append(piece)

    def _end_value(self, position: int) -> None:
        self._state = self._after_value
        if self._role is _Role.KEY:
            self._state = self._before_colon
            self._end_key(_decoded("".join(self._captured)), position)
        elif self._role is _Role.NAME:
            self._name = _decoded("".join(self._captured)) or None
            if self._name is None:
                self._give_up()
            else:
                self._decide(self._base + position)
        elif self._role is _Role.ARGUMENTS:
            self.flawed = self._scanner.flawed
            if self._unpacker is not None:
                self.flawed = self.flawed or not self._unpacker.holds_json
        self._captured = []

    def _end_key(self, key: str | None, position: int) -> None:
        self._role = self._role_of(key)
        if self._body.name_is_key and self._name is None:
            self._name = key or None
            self._role = _Role.ARGUMENTS
            if self._name is None:
                self._give_up()

    def _role_of(self, key: str | None) -> _Role:
        if key in self._body.name_keys and self._name is None:
            return _Role.NAME
        if key in self._body.argument_keys and not self._has_arguments:
            return _Role.ARGUMENTS
        allowed = self._body.other_keys
        if self.verdict is Verdict.UNDECIDED and allowed is not None and key not in allowed:
            self._give_up()
        return _Role.OTHER

    def _after_value(self, text: str, position: int) -> int:
        char, position = self._next_char(text, position)
        if char == ",":
            self._state = self._next_key
            return position + 1
        if char == "}":
            return self._close(position)
        return self._break_at(char, position)

    def _decide(self, certain_at: int) -> None:
        """Calls it a call once the name and whatever else it needs are there."""
        if self.verdict is not Verdict.UNDECIDED or self._name is None:
            return
        if self._body.arguments_required and not self._has_arguments:
            return
        if not self._tools.allows(self._name, self._body):
            self._give_up()
            return
        self.verdict = Verdict.CALL
        self._sink.call_started(self._name, certain_at)
        early = "".join(self._early_arguments)
        self._early_arguments = []
        if early:
            start = self._arguments_start
            end = start + len(early) if self._unpacker is None else self._unpacked_end
            self._sink.call_arguments(early, start, end)

    def _give_up(self) -> None:
        if self.verdict is Verdict.UNDECIDED:
            self.verdict = Verdict.TEXT
            self._early_arguments = []

    def _close(self, position: int) -> int:
        self._give_up()
        if self.verdict is Verdict.CALL and not self._has_arguments:
            self._sink.call_arguments("{}", self._base + position, self._base + position)
        self.ending = Ending.COMPLETE
        return position + 1

    def _break_at(self, char: str, position: int) -> int:
        """Ends the reading at a character that cannot be; none at all only means more to come."""
        if char:
            self._give_up()
            return self._break(position)
        return position


def _decoded(literal: str) -> str | None:
    """The text of a JSON string literal; None for anything else and for what is not Unicode."""
    if not literal.startswith('"'):
        return None
    try:
        text = json.loads(literal, strict=False)
        text.encode()
    except (ValueError, RecursionError):
        return None
    return str(text)

"""Reads one tool call that is spelt as a JSON object, name and arguments in either order."""

import enum
import json

from toolparser_worker.machine.arguments import NO_ARGUMENTS, ArgumentsScanner
from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.declarations import JsonObjectBody
from toolparser_worker.machine.json_value import JsonValueScanner
from toolparser_worker.machine.reading import (
    MORE,
    MOVED,
    NEEDS_ESCAPE,
    Answer,
    CallReader,
    CallSink,
    Plain,
    Verdict,
    plain_text,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_IN_STRING = plain_text(NEEDS_ESCAPE)
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
_SAYS_NOTHING = frozenset({"id", "call_id", "tool_call_id", "index", "type"})
"""Members beside name and arguments that may be left out uncounted."""


class _Role(enum.Enum):
    KEY = enum.auto()
    NAME = enum.auto()
    ARGUMENTS = enum.auto()
    OTHER = enum.auto()


class JsonCallReader(CallReader[JsonObjectBody]):
    """Follows one JSON object and tells whether it is a call.

    Arguments are handed on as they come; those that come before the name wait for it. An object
    that turns out to be no call is still followed to its end, so that what is nested in it is not
    taken for one; but not in reasoning, whose end may stand in what only looks like an object.

    It is long because each state of the automaton is a method.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Not needed, as the object has an end of its own.
        follows_text: Whether to follow what is no call.
    """

    writes_json = False

    def __init__(
        self,
        body: JsonObjectBody,
        sink: CallSink,
        tools: ToolSchemas,
        stops: tuple[str, ...] = (),
        *,
        follows_text: bool = True,
    ) -> None:
        super().__init__(body, sink, tools, stops)
        self._state = self._before_object
        self._role = _Role.KEY
        self._scanner = JsonValueScanner()
        self._captured: list[str] = []
        self._name: str | None = None
        self._arguments = ArgumentsScanner(self._take_arguments)
        self._has_arguments = False
        self._early: list[tuple[str, int, int]] = []
        self._follows_text = follows_text

    @property
    def takes_rest(self) -> bool:
        """Until the arguments are complete (`CallReader`)."""
        return not self._arguments.done

    def plain(self) -> Plain | None:
        """Text within a string of the arguments (`CallReader`)."""
        if (
            self._role is _Role.ARGUMENTS
            and self.verdict is Verdict.CALL
            and self._arguments.is_plain
            and self._state == self._in_arguments
        ):
            return Plain(_IN_STRING)
        return None

    def _before_object(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] != "{":
            return self._break(position)
        self._state = self._first_key
        return MOVED, position + 1

    def _first_key(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if text[position : position + 1] == "}":
            return self._close(position)
        return self._next_key(text, position)

    def _next_key(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] != '"':
            return self._break(position)
        self._begin_value(_Role.KEY)
        return MOVED, position

    def _before_colon(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] != ":":
            return self._break(position)
        self._state = self._before_value
        if self._role is _Role.ARGUMENTS:
            self._has_arguments = True
            self._decide(self._base + position + 1)
        return self._unless_text(position + 1)

    def _before_value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position < len(text):
            self._begin_value(self._role)
        return MOVED, position

    def _begin_value(self, role: _Role) -> None:
        self._role = role
        self._captured = []
        if role is _Role.ARGUMENTS:
            self._state = self._in_arguments
        else:
            self._scanner = JsonValueScanner()
            self._state = self._in_value

    def _in_value(self, text: str, position: int) -> Answer:
        scanner = self._scanner
        stop = scanner.feed(text, position)
        if stop > position and self._role is not _Role.OTHER:
            self._captured.append(text[position:stop])
        if scanner.broken:
            return self._break(stop)
        if not scanner.done:
            return MORE, stop
        self._state = self._after_value
        if self._role is _Role.KEY:
            self._state = self._before_colon
            self._end_key(_decoded("".join(self._captured)))
        elif self._role is _Role.NAME:
            self._name = _decoded("".join(self._captured)) or None
            if self._name is None:
                self._give_up()
            else:
                self._decide(self._base + stop)
        self._captured = []
        return self._unless_text(stop)

    def _in_arguments(self, text: str, position: int) -> Answer:
        arguments = self._arguments
        stop = arguments.feed(text, position, self._base)
        if arguments.broken:
            return self._break(stop)
        if not arguments.done:
            return MORE, stop
        self.flawed = self.flawed or arguments.flawed
        self._state = self._after_value
        return MOVED, stop

    def _take_arguments(self, piece: str, start: int, end: int) -> None:
        if self.verdict is Verdict.CALL:
            self._sink.call_arguments(piece, start, end)
        elif self.verdict is Verdict.UNDECIDED:
            self._early.append((piece, start, end))

    def _end_key(self, key: str | None) -> None:
        body = self._body
        if body.name_is_key and self._name is None:
            self._name = key or None
            self._role = _Role.ARGUMENTS
            if self._name is None:
                self._give_up()
        elif key in body.name_keys and self._name is None:
            self._role = _Role.NAME
        elif not body.name_is_key and not self._has_arguments and self._holds_arguments(key):
            self._role = _Role.ARGUMENTS
        else:
            self._role = _Role.OTHER
            self.flawed = self.flawed or key not in _SAYS_NOTHING
            if body.other_keys is not None and key not in body.other_keys:
                self._give_up()

    def _holds_arguments(self, key: str | None) -> bool:
        return key in _ARGUMENT_KEYS or key in self._body.argument_keys

    def _after_value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] == "}":
            return self._close(position)
        if text[position] != ",":
            return self._break(position)
        self._state = self._next_key
        return MOVED, position + 1

    def _decide(self, certain_at: int) -> None:
        """Calls it a call once the name and whatever else it needs are there."""
        if self.verdict is not Verdict.UNDECIDED or self._name is None:
            return
        if self._body.arguments_required and not self._has_arguments:
            return
        if not self._sink.allows(self._name):
            self._give_up()
            return
        self._start(self._name, certain_at)
        for early in self._early:
            self._sink.call_arguments(*early)
        self._early = []

    def _give_up(self) -> None:
        if self.verdict is Verdict.UNDECIDED:
            self.verdict = Verdict.TEXT
            self._early = []

    def _unless_text(self, position: int) -> Answer:
        """Goes on, unless it is known to be no call and text is not followed."""
        if self.verdict is Verdict.TEXT and not self._follows_text:
            return self._complete(position)
        return MOVED, position

    def _close(self, position: int) -> Answer:
        self._give_up()
        if self.verdict is Verdict.CALL and not self._has_arguments:
            at = self._base + position
            self._sink.call_arguments(NO_ARGUMENTS, at, at)
        return self._complete(position + 1)

    def _break(self, position: int) -> Answer:
        self._give_up()
        return super()._break(position)


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

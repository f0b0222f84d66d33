"""Reads one tool call spelt `call:name{key:value,…}` and writes its arguments as JSON."""

import json
import re
from typing import Final, Literal

from toolparser_worker.machine.blanks import after_space, stripped
from toolparser_worker.machine.coercion import coerced, is_plain_text, schema_types
from toolparser_worker.machine.declarations import BracedBody
from toolparser_worker.machine.json_value import MAX_NESTING, JsonValueScanner
from toolparser_worker.machine.literals import literal_matcher
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
    escaped,
    plain_text,
    quoted,
    starts_with,
)
from toolparser_worker.machine.tool_schemas import Schema, ToolSchemas, member_schema, schema_part

_BARE_KEY_END = re.compile(r"[:{}\[\],<]")
_PYTHON_NAMES: Final = {"None": "null", "True": "true", "False": "false"}
_BARE_VALUE_END = re.compile(r"[{}\[\],<]")
_JSON_QUOTE = '"'


class BracedCallReader(CallReader[BracedBody]):
    """Turns the private spelling into JSON as it comes (`CallReader`).

    It is long because each state of the automaton is a method.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Not needed, as the braces are the end.
    """

    def __init__(
        self, body: BracedBody, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        super().__init__(body, sink, tools, stops)
        self._state = self._in_name
        self._reader = NameReader(("{",))
        self._keys: set[str] = set()
        self._scanner = JsonValueScanner()
        self._open: list[str] = []
        self._schemas: list[Schema] = []
        self._short: list[str] = []
        self._key = ""
        self._in_string = False
        self._streams = False
        self._is_key = False
        self._has_value = False
        self._quotes = literal_matcher((body.quote,))

    def close(self, offset: int) -> None:
        """Ends strings, lists and objects where the text ended (`CallReader`)."""
        if self.verdict is not Verdict.CALL:
            return
        if self._in_string and self._streams:
            self._write('"', offset)
        elif self._in_string and not self._is_key:
            self._write(self._typed("".join(self._short)), offset)
        elif self._state in (self._bare_value, self._json_string):
            self._write(self._typed(stripped("".join(self._short))), offset)
        elif self._state == self._value and not self._has_value and self._open[-1][0] == "{":
            self._write("null", offset)
        opened = [first[0] for first in self._open]
        self._write("".join("}" if char == "{" else "]" for char in reversed(opened)), offset)

    def plain(self) -> Plain | None:
        """Text within a string that leaves as it comes (`CallReader`)."""
        if self._in_string and self._streams:
            return Plain(plain_text(self._quotes.first_chars + NEEDS_ESCAPE))
        return None

    def _write(self, text: str, offset: int) -> None:
        if text:
            self._sink.call_arguments(text, offset, offset)

    def _in_name(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        name = self._reader.name
        if not self._reader.end or not self._sink.allows(name):
            return self._break(position)
        at = self._base + position
        self._start(name, at)
        self._open.append("{")
        self._schemas.append(self._tools.parameters(name))
        self._sink.call_arguments("{", at, at + 1)
        self._begin_key()
        return MOVED, position + 1

    def _begin_key(self) -> None:
        self._state = self._before_key
        self._has_value = False
        self._short = []

    def _before_key(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] == "}":
            return self._close_bracket("}", position)
        if text[position] == ",":
            return MOVED, position + 1
        is_quoted = starts_with(text, position, self._body.quote, final=self._final)
        if is_quoted is None:
            return MORE, position
        if is_quoted:
            self._in_string = self._is_key = True
            self._streams = False
            self._state = self._string
            return MOVED, position + len(self._body.quote)
        self._state = self._bare_key
        return MOVED, position

    def _bare_key(self, text: str, position: int) -> Answer:
        found = _BARE_KEY_END.search(text, position)
        stop = found.start() if found is not None else len(text)
        self._short.append(text[position:stop])
        if found is None:
            return MOVED, stop
        if text[stop] != ":":
            return self._break(stop)
        return self._end_key(stripped("".join(self._short)).strip(_JSON_QUOTE), stop)

    def _before_colon(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] != ":":
            return self._break(position)
        return self._end_key("".join(self._short), position)

    def _end_key(self, key: str, position: int) -> Answer:
        self._short = []
        at = self._base + position
        self._key = key
        if len(self._open) == 1:
            self.flawed = self.flawed or key in self._keys
            self._keys.add(key)
        self._sink.call_arguments(f"{self._comma()}{quoted(key)}: ", at, at + 1)
        self._state = self._value
        self._has_value = False
        return MOVED, position + 1

    def _comma(self) -> str:
        """What stands before the next member or item of the innermost bracket."""
        first = self._open[-1]
        if len(first) == 1:
            self._open[-1] = f"{first},"
            return ""
        return ", "

    def _value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        char = text[position]
        if char == "]" and self._open[-1][0] == "[":
            return self._close_bracket("]", position)
        if char == "," and self._open[-1][0] == "[":
            return MOVED, position + 1
        if char in "{[":
            return self._open_bracket(char, position)
        is_quoted = starts_with(text, position, self._body.quote, final=self._final)
        if is_quoted is None:
            return MORE, position
        self._comma_of_item(position)
        self._short = []
        if is_quoted:
            return self._begin_string(position)
        self._scanner = JsonValueScanner()
        self._state = self._json_string if char == _JSON_QUOTE else self._bare_value
        return MOVED, position

    def _comma_of_item(self, position: int) -> None:
        if self._open[-1][0] == "[":
            self._write(self._comma(), self._base + position)

    def _open_bracket(self, char: str, position: int) -> Answer:
        if len(self._open) == MAX_NESTING:
            return self._break(position)
        self._comma_of_item(position)
        self._schemas.append(self._value_schema())
        self._open.append(char)
        at = self._base + position
        self._sink.call_arguments(char, at, at + 1)
        if char == "{":
            self._begin_key()
        return MOVED, position + 1

    def _begin_string(self, position: int) -> Answer:
        stop = position + len(self._body.quote)
        self._in_string = True
        self._is_key = False
        self._streams = not self._body.parses_strings or is_plain_text(
            self._value_schema(), self._undeclared()
        )
        if self._streams:
            self._sink.call_arguments('"', self._base + position, self._base + stop)
        self._state = self._string
        return MOVED, stop

    def _string(self, text: str, position: int) -> Answer:
        start, stop = self._quotes.find(text, position, final=self._final)
        piece = text[position:start]
        at = self._base + position
        if piece and self._streams:
            self._sink.call_arguments(escaped(piece), at, at + len(piece))
        elif piece:
            self._short.append(piece)
        if start == stop:
            return MORE, start
        self._in_string = False
        if self._is_key:
            self._state = self._before_colon
            return MOVED, stop
        if self._streams:
            self._write('"', self._base + start)
        else:
            self._write(self._typed("".join(self._short)), self._base + start)
        self._value_ended()
        return MOVED, stop

    def _typed(self, text: str) -> str:
        """The JSON of a value that is not a string for certain."""
        return coerced(text, self._value_schema(), undeclared=self._undeclared())

    def _undeclared(self) -> Literal["text", "json"]:
        """What a value is here that no schema types: strings have quotes, so it is none."""
        is_unknown = self._tools.parameters(self._reader.name) is None
        return self._body.undeclared if is_unknown and len(self._open) == 1 else "json"

    def _value_schema(self) -> Schema:
        """The schema of the value that stands here."""
        if self._open[-1][0] == "[":
            return schema_part(self._schemas[-1], "items")
        return member_schema(self._schemas[-1], self._key)

    def _bare_value(self, text: str, position: int) -> Answer:
        found = _BARE_VALUE_END.search(text, position)
        stop = found.start() if found is not None else len(text)
        self._short.append(text[position:stop])
        if found is None:
            return MOVED, stop
        bare = stripped("".join(self._short))
        self._write(self._bare(bare) if bare else "null", self._base + stop)
        self._value_ended()
        return MOVED, stop

    def _bare(self, text: str) -> str:
        """The JSON of a value without quotes; some templates show Python's names in a history."""
        types = schema_types(self._value_schema())
        is_text = "string" in types or (not types and self._undeclared() == "text")
        return self._typed(text if is_text else _PYTHON_NAMES.get(text, text))

    def _json_string(self, text: str, position: int) -> Answer:
        """A string in ordinary quotes, which these formats do not write but models do."""
        stop = self._scanner.feed(text, position)
        self._short.append(text[position:stop])
        if not self._scanner.done:
            return MORE, stop
        literal = "".join(self._short)
        try:
            decoded = json.loads(literal, strict=False)
        except ValueError:
            decoded = literal[1:-1]
        schema = self._value_schema()
        is_text = "string" in schema_types(schema) or not schema_types(schema)
        self._write(quoted(decoded) if is_text else self._typed(decoded), self._base + stop)
        self._value_ended()
        return MOVED, stop

    def _value_ended(self) -> None:
        self._has_value = True
        self._state = self._after_value

    def _after_value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        char = text[position]
        if char == ",":
            if self._open[-1][0] == "{":
                self._begin_key()
            else:
                self._state = self._value
            return MOVED, position + 1
        if char == ("}" if self._open[-1][0] == "{" else "]"):
            return self._close_bracket(char, position)
        return self._break(position)

    def _close_bracket(self, char: str, position: int) -> Answer:
        self._open.pop()
        self._schemas.pop()
        at = self._base + position
        self._sink.call_arguments(char, at, at + 1)
        if not self._open:
            return self._complete(position + 1)
        self._value_ended()
        return MOVED, position + 1

"""Reads one tool call whose parameters are elements of plain text, and writes them as JSON."""

import re

from toolparser_worker.machine.coercion import coerced, is_plain_text, json_or_text
from toolparser_worker.machine.declarations import ParameterBody
from toolparser_worker.machine.json_value import after_space
from toolparser_worker.machine.literals import LiteralMatcher, literal_matcher
from toolparser_worker.machine.reading import (
    BLANKS,
    MAX_NAME_CHARS,
    NEEDS_ESCAPE,
    CallReader,
    CallSink,
    Ending,
    Plain,
    Verdict,
    escaped,
    plain_text,
    quoted,
    starts_with,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_ATTRIBUTE = re.compile(r"""([^\s=<>"']+?)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>]+))""")
_CDATA_START = "<![CDATA["
_CDATA_END = "]]>"


class ParameterCallReader(CallReader[ParameterBody]):
    """Reads name, then parameter after parameter; text between them is dropped (`CallReader`).

    Values that are text for certain stream as they come. Others wait for their end, as only the
    whole text says whether it is the number or object that the schema wants.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
    """

    def __init__(self, body: ParameterBody, sink: CallSink, tools: ToolSchemas) -> None:
        super().__init__(body, sink, tools)
        self._state = self._in_name
        self._short: list[str] = []
        self._num_short = 0
        self._name = ""
        self._key = ""
        self._separator = ""
        self._whole: tuple[str, str] | None = None
        self._could_be_whole = False
        self._value: list[str] | None = None
        self._is_typed = False
        self._blank: list[str] = []
        self._is_dropped = False
        self._value_matcher: LiteralMatcher = _value_matcher(body)
        self._ends = (body.end, *body.other_ends)
        self._value_ends = (body.value_end, *body.other_value_ends)

    def close(self, offset: int) -> None:
        """Ends the JSON where the text ended (`CallReader`)."""
        if self.verdict is not Verdict.CALL:
            return
        if self._state in (self._in_value, self._value_begins):
            self._end_value(offset)
        self._end_arguments(offset)

    def plain(self) -> Plain | None:
        """Text within a value (`CallReader`)."""
        if self._state != self._in_value:
            return None
        starts = self._value_matcher.first_chars
        if self._value is not None:
            return Plain(plain_text(starts), self._value)
        if self._body.trims != "space":
            return Plain(plain_text(starts + NEEDS_ESCAPE))
        text = plain_text(starts + NEEDS_ESCAPE, BLANKS)
        if any(blank not in text.blanks for blank in "".join(self._blank)):
            return None
        return Plain(text, waits=self._blank)

    # The name and the keys: short texts that are collected whole.

    def _in_name(self, text: str, position: int) -> int:
        body = self._body
        more = (*body.parameters, *self._ends) if body.bare_name else self._ends
        if not self._num_short:
            position = after_space(text, position)
        start, stop, collected = self._collect(text, position, (*body.name_ends, *more))
        if collected is None:
            return start
        name = collected.strip()
        if not body.bare_name:
            name = _tag_value(collected, body.name_attribute, body.unescapes) or ""
        is_name = bool(name) and "<" not in name and not re.search(r"\s", name)
        if not is_name or (not self._tools.allows(name, body)):
            return self._break(start)
        if body.doubled_names:
            name = self._tools.undoubled(name)
        self._name = name
        self.verdict = Verdict.CALL
        certain_at = self._base + stop
        self._sink.call_started(name, certain_at)
        self._sink.call_arguments("{", certain_at, certain_at)
        self._state = self._between
        return start if text[start:stop] in more else stop

    def _collect(
        self, text: str, position: int, ends: tuple[str, ...]
    ) -> tuple[int, int, str | None]:
        """Collects text up to one of some ends; None for it while there is none."""
        matcher = literal_matcher(ends)
        start, stop = matcher.find(text, position, final=self._final)
        self._short.append(text[position:start])
        self._num_short += start - position
        if self._num_short > MAX_NAME_CHARS:
            self._short.clear()
            return self._break(start), start, None
        if start == stop:
            return start, start, None
        collected = "".join(self._short)
        self._short.clear()
        self._num_short = 0
        return start, stop, collected

    def _between(self, text: str, position: int) -> int:
        """Between the parameters: the next one, or the end."""
        body = self._body
        matcher = literal_matcher((*body.parameters, *self._ends, *body.also_ends))
        start, stop = matcher.find(text, position, final=self._final)
        literal = text[start:stop]
        if not literal:
            return start
        if literal in body.parameters:
            self._state = self._in_key
            return stop
        self._end_arguments(self._base + start)
        self.ending = Ending.COMPLETE
        return stop if literal in self._ends else start

    def _in_key(self, text: str, position: int) -> int:
        body = self._body
        start, stop, collected = self._collect(text, position, (body.key_end, *self._ends))
        if collected is None:
            return start
        if text[start:stop] in self._ends and text[start:stop] != body.key_end:
            self._state = self._between
            return start
        self._key = _tag_value(collected, body.key_attribute, body.unescapes) or ""
        self._begin_value(collected, self._base + stop)
        return stop

    # Values.

    def _begin_value(self, tag: str, offset: int) -> None:
        body = self._body
        schema = self._tools.parameter(self._name, self._key)
        is_text = is_plain_text(schema, body.undeclared)
        self._is_typed = False
        if body.text_attribute:
            wire = _tag_value(tag, body.text_attribute, body.unescapes)
            if wire is not None:
                is_text = wire in body.text_values
                self._is_typed = not is_text and schema is None
        is_undeclared = schema is None and self._tools.has_parameters(self._name)
        self._is_dropped = not self._key or (body.drops_undeclared and is_undeclared)
        could_be_whole = (
            self._key in body.unwrapped
            and schema is None
            and not self._separator
            and self._whole is None
        )
        self._could_be_whole = could_be_whole
        streams = is_text and not could_be_whole and not self._is_dropped
        self._value = None if streams else []
        self._state = self._value_begins
        if not self._is_dropped and not could_be_whole:
            self._write_key(self._key, offset)
        if streams:
            self._sink.call_arguments('"', offset, offset)

    def _write_key(self, key: str, offset: int) -> None:
        if self._whole is not None:
            whole_key, whole = self._whole
            self._whole = None
            self._separator = ", "
            self._sink.call_arguments(f"{quoted(whole_key)}: {whole}", offset, offset)
        self._sink.call_arguments(f"{self._separator}{quoted(key)}: ", offset, offset)
        self._separator = ", "

    def _value_begins(self, text: str, position: int) -> int:
        """Before the value: its own marker, and white space that is no part of it."""
        body = self._body
        start = position
        if body.value_start:
            start = after_space(text, start)
            is_there = starts_with(text, start, body.value_start, final=self._final)
            if is_there is None:
                return start
            start += len(body.value_start) if is_there else 0
        if body.trims == "space":
            start = after_space(text, start)
        if body.trims == "newline" or body.cdata:
            opening = _CDATA_START if body.cdata else "\n"
            is_there = starts_with(text, start, opening, final=self._final)
            if is_there is None:
                return position
            start += len(opening) if is_there else 0
            if is_there and body.cdata:
                self._value_matcher = literal_matcher((_CDATA_END + body.value_end,))
        if start == len(text) and not self._final and body.trims == "space":
            return start
        self._state = self._in_value
        return start

    def _in_value(self, text: str, position: int) -> int:
        start, stop = self._value_matcher.find(text, position, final=self._final)
        if start > position:
            piece = text[position:start]
            self._take_value(piece, self._base + position)
        if start == stop:
            return start
        self._end_value(self._base + start)
        literal = text[start:stop]
        self._state = self._between
        if literal.endswith(self._value_ends):
            return stop
        return stop - len(literal.lstrip())  # The next parameter, or the call's end.

    def _take_value(self, piece: str, start: int) -> None:
        if self._value is not None:
            self._value.append(piece)
            return
        if self._body.trims == "space":
            # White space at the end is no part of the value, so it waits for what follows.
            size = len(piece.rstrip())
            if not size:
                self._blank.append(piece)
                return
            blank = "".join(self._blank)
            self._blank[:] = [piece[size:]]
            start -= len(blank)
            piece = blank + piece[:size]
        if piece:
            self._sink.call_arguments(escaped(piece), start, start + len(piece))

    def _end_value(self, offset: int) -> None:
        self._value_matcher = _value_matcher(self._body)
        self._blank.clear()
        if self._value is None:
            self._sink.call_arguments('"', offset, offset)
            return
        text = "".join(self._value)
        self._value = None
        if self._is_dropped:
            return
        value = self._converted(text)
        if self._could_be_whole:
            self._whole = (self._key, value)
            return
        self._sink.call_arguments(value, offset, offset)

    def _converted(self, text: str) -> str:
        body = self._body
        if body.trims == "space":
            text = text.strip()
        if self._is_typed or self._key in body.unwrapped:
            return json_or_text(text)
        return coerced(
            text,
            self._tools.parameter(self._name, self._key),
            undeclared=body.undeclared,
            reads_python=body.reads_python,
        )

    def _end_arguments(self, offset: int) -> None:
        if self._whole is not None:
            key, value = self._whole
            self._whole = None
            inner = value.strip()
            if inner.startswith("{"):
                self._sink.call_arguments(inner[1:], offset, offset)
                return
            self._sink.call_arguments(f"{quoted(key)}: {value}", offset, offset)
        self._sink.call_arguments("}", offset, offset)


def _value_matcher(body: ParameterBody) -> LiteralMatcher:
    """Finds what ends a value: its end marker, or what may only come after it."""
    ends = (body.value_end, *body.other_value_ends, *body.parameters, body.end, *body.other_ends)
    if body.trims == "newline":
        ends += tuple(f"\n{end}" for end in ends)
    return literal_matcher(ends)


def _tag_value(tag: str, attribute: str, unescapes: tuple[tuple[str, str], ...]) -> str | None:
    """The value of an attribute in the inside of a tag; without one, all of it."""
    if attribute:
        for match in _ATTRIBUTE.finditer(tag):
            if match[1] == attribute:
                value = next(group for group in match.groups()[1:] if group is not None)
                for written, meant in unescapes:
                    value = value.replace(written, meant)
                return value
        return None
    return tag.strip().strip("\"'")

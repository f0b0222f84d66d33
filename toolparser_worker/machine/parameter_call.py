"""Reads one tool call whose parameters are elements of plain text, and writes them as JSON."""

import re

from toolparser_worker.machine.arguments import ObjectCollector
from toolparser_worker.machine.blanks import BLANK, BLANKS, after_space, stripped
from toolparser_worker.machine.coercion import coerced, is_plain_text, json_or_text
from toolparser_worker.machine.declarations import ParameterBody
from toolparser_worker.machine.literals import LiteralMatcher, literal_matcher
from toolparser_worker.machine.names import MAX_NAME_CHARS, NAME_RUN, NameReader
from toolparser_worker.machine.reading import (
    DONE,
    MORE,
    MOVED,
    NEEDS_ESCAPE,
    Answer,
    CallReader,
    CallSink,
    Plain,
    State,
    Verdict,
    escaped,
    plain_text,
    quoted,
    starts_with,
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_ATTRIBUTE = re.compile(
    rf"""([^ \t\n\r=<>"']+?){BLANK}*={BLANK}*(?:"([^"]*)"|'([^']*)'|([^ \t\n\r"'<>]+))"""
)
_CDATA_START = "<![CDATA["
_CDATA_END = "]]>"
_LINE_FEED = "\n"
_NO_LINE_FEEDS = re.compile(r"[ \t\r]*+")
_OBJECT_START = "{"
_TAG_START = "<"


class ParameterCallReader(CallReader[ParameterBody]):
    """Reads name, then parameter after parameter (`CallReader`).

    Values that are text for certain stream as they come. Others wait for their end, as only the
    whole text says whether it is the number or object that the schema wants. What stands between
    parameters is left out and makes the call flawed, but for one JSON object in their place.

    It is long because each state of the automaton is a method.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Not needed, as the body's end belongs to it.
    """

    def __init__(
        self, body: ParameterBody, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        super().__init__(body, sink, tools, stops)
        self._ends = (body.end, *body.other_ends)
        self._value_ends = (body.value_end, *body.other_value_ends)
        self._value_matcher: LiteralMatcher = _value_matcher(body)
        self._reader, self._state = self._first_state()
        self._tag: list[str] = []
        self._num_tag = 0
        self._tag_at = 0
        self._is_in_value = False
        self._name = ""
        self._key = ""
        self._keys: set[str] = set()
        self._separator = ""
        self._whole: tuple[str, str] | None = None
        self._could_be_whole = False
        self._value: list[str] | None = None
        self._is_typed = False
        self._is_trimmed = False
        self._blank: list[str] = []
        self._is_dropped = False
        self._object = ObjectCollector()
        self._may_be_object = True

    def close(self, offset: int) -> None:
        """Ends the JSON where the text ended (`CallReader`)."""
        if self.verdict is not Verdict.CALL:
            return
        if self._state == self._in_key and self._is_in_value:
            self._give_back()
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
        if not self._is_trimmed:
            return Plain(plain_text(starts + NEEDS_ESCAPE))
        text = plain_text(starts + NEEDS_ESCAPE, BLANKS)
        if any(blank not in text.blanks for blank in "".join(self._blank)):
            return None
        return Plain(text, waits=self._blank)

    # The name and the keys: short texts that are collected whole.

    def _first_state(self) -> tuple[NameReader, State]:
        body = self._body
        if body.name_attribute:
            return NameReader(()), self._in_name_tag
        if not body.bare_name:
            return NameReader((*body.name_ends, *self._ends), quotes="\"'"), self._in_name
        ends = (*body.name_ends, *body.parameters, *self._ends, _OBJECT_START)
        blanks = _NO_LINE_FEEDS if _LINE_FEED in body.name_ends else None
        return NameReader(ends, blanks=blanks), self._in_name

    def _in_name(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        end = self._reader.end
        if not end:
            return self._break(position)
        stop = position + len(end) if end in self._body.name_ends else position
        return self._begin(self._reader.name, position, stop)

    def _in_name_tag(self, text: str, position: int) -> Answer:
        """In the tag that holds the name as an attribute."""
        start, stop, literal = self._collect(text, position, self._body.name_ends)
        if literal is None:
            return MORE, start
        body = self._body
        name = _tag_value("".join(self._tag), body.name_attribute, body.unescapes) or ""
        if not literal or not name or NAME_RUN.fullmatch(name) is None:
            return self._break(start)
        return self._begin(name, start, stop)

    def _begin(self, name: str, position: int, stop: int) -> Answer:
        """The call begins, if it may have the name that ends at a position."""
        if not self._sink.allows(name):
            return self._break(position)
        self._name = self._tools.undoubled(name) if self._body.doubled_names else name
        at = self._base + stop
        self._start(self._name, at)
        self._sink.call_arguments("{", at, at)
        self._state = self._between
        return MOVED, stop

    def _collect(
        self, text: str, position: int, ends: tuple[str, ...]
    ) -> tuple[int, int, str | None]:
        """Collects a tag up to one of some ends.

        Returns:
            Where the end begins and stops, and the end itself; None for it while there is none,
            and empty at what can't be in a tag.
        """
        no_tag = (_TAG_START,) if self._body.value_start else (_TAG_START, _LINE_FEED)
        matcher = literal_matcher((*ends, *no_tag))
        start, stop = matcher.find(text, position, final=self._final)
        last = position + MAX_NAME_CHARS - self._num_tag
        self._tag.append(text[position : min(start, last)])
        self._num_tag += start - position
        if start > last:
            return last, last, ""
        if start == stop:
            return start, start, None
        literal = text[start:stop]
        return start, stop, literal if literal in ends else ""

    def _between(self, text: str, position: int) -> Answer:
        """Between the parameters: the next one, or the end."""
        body = self._body
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        markers = (*body.parameters, *self._ends, *body.also_ends)
        if text[position] == _OBJECT_START and self._may_be_object:
            self._may_be_object = False
            self._state = self._in_object
            return MOVED, position
        start, stop = literal_matcher(markers).find(text, position, final=self._final)
        if start > position:
            self.flawed = True
            self._may_be_object = False
        if start == stop:
            return MORE, start
        literal = text[start:stop]
        if literal in body.parameters:
            self._begin_key(literal, self._base + start)
            return MOVED, stop
        self._end_arguments(self._base + start)
        return self._complete(stop if literal in self._ends else start)

    def _in_object(self, text: str, position: int) -> Answer:
        """In a JSON object that stands in the place of all parameters."""
        step, position = self._object.feed(text, position)
        if step is not DONE:
            return step, position
        self._state = self._between
        if self._object.members is None:
            self.flawed = True
        return MOVED, position

    def _begin_key(self, literal: str, offset: int, *, in_value: bool = False) -> None:
        self._state = self._in_key
        self._may_be_object = False
        self._is_in_value = in_value
        self._tag = [literal]
        self._num_tag = 0
        self._tag_at = offset

    def _in_key(self, text: str, position: int) -> Answer:
        body = self._body
        start, stop, literal = self._collect(text, position, (body.key_end,))
        if literal is None:
            return MORE, start
        if not literal:
            # No key after all: text of the value that it stands in, or left out.
            self._give_back()
            return MOVED, start
        if self._is_in_value:
            self._end_value(self._tag_at)
        tag = "".join(self._tag[1:])
        self._key = _tag_value(tag, body.key_attribute, body.unescapes) or ""
        self._begin_value(tag, self._base + stop)
        return MOVED, stop

    def _give_back(self) -> None:
        if self._is_in_value:
            self._state = self._in_value
            self._take_value("".join(self._tag), self._tag_at)
        else:
            self._state = self._between
            self.flawed = True

    # Values.

    def _begin_value(self, tag: str, offset: int) -> None:
        body = self._body
        schema = self._tools.parameter(self._name, self._key)
        is_text = is_plain_text(schema, body.undeclared)
        self._is_trimmed = body.trims == "space" and not self._tools.has_input_grammar(self._name)
        self._is_typed = False
        if body.text_attribute:
            wire = _tag_value(tag, body.text_attribute, body.unescapes)
            if wire is not None:
                is_text = wire in body.text_values
                self._is_typed = not is_text and schema is None
        is_undeclared = schema is None and self._tools.has_parameters(self._name)
        could_be_whole = (
            self._key in body.unwrapped
            and schema is None
            and not self._separator
            and self._whole is None
        )
        is_known = could_be_whole or not (body.drops_undeclared and is_undeclared)
        self._is_dropped = not self._key or not is_known or self._has_object
        self.flawed = self.flawed or self._is_dropped or self._key in self._keys
        self._keys.add(self._key)
        self._could_be_whole = could_be_whole
        streams = is_text and not could_be_whole and not self._is_dropped
        self._value = None if streams else []
        self._state = self._value_begins
        if not self._is_dropped and not could_be_whole:
            self._write_key(self._key, offset)
        if streams:
            self._sink.call_arguments('"', offset, offset)

    @property
    def _has_object(self) -> bool:
        """Whether an object stood in the place of the parameters."""
        return self._object.members is not None

    def _write_key(self, key: str, offset: int) -> None:
        if self._whole is not None:
            whole_key, whole = self._whole
            self._whole = None
            self._separator = ", "
            self._sink.call_arguments(f"{quoted(whole_key)}: {whole}", offset, offset)
        self._sink.call_arguments(f"{self._separator}{quoted(key)}: ", offset, offset)
        self._separator = ", "

    def _value_begins(self, text: str, position: int) -> Answer:
        """Before the value: its own marker, and white space that is no part of it."""
        body = self._body
        start = position
        if body.value_start:
            start = after_space(text, start)
            is_there = starts_with(text, start, body.value_start, final=self._final)
            if is_there is None:
                return MORE, start
            start += len(body.value_start) if is_there else 0
        if self._is_trimmed:
            start = after_space(text, start)
        if body.trims == "newline" or body.cdata:
            opening = _CDATA_START if body.cdata else _LINE_FEED
            is_there = starts_with(text, start, opening, final=self._final)
            if is_there is None:
                return MORE, position
            start += len(opening) if is_there else 0
            if is_there and body.cdata:
                ends = (_CDATA_END, _CDATA_END + _LINE_FEED)
                self._value_matcher = literal_matcher(tuple(end + body.value_end for end in ends))
        if start == len(text) and not self._final and self._is_trimmed:
            return MORE, start
        self._state = self._in_value
        return MOVED, start

    def _in_value(self, text: str, position: int) -> Answer:
        start, stop = self._value_matcher.find(text, position, final=self._final)
        if start > position:
            self._take_value(text[position:start], self._base + position)
        if start == stop:
            return MORE, start
        literal = text[start:stop]
        if literal.endswith(self._value_ends):
            self._end_value(self._base + start)
            self._state = self._between
            return MOVED, stop
        if literal.endswith((*self._ends, *self._body.value_also_ends)):
            self._end_value(self._base + start)
            self._state = self._between
            self.flawed = True  # Nothing tells a call's end in a value from its real end.
            return MOVED, stop - len(literal.lstrip(BLANKS))
        self._begin_key(literal, self._base + start, in_value=True)
        return MOVED, stop

    def _take_value(self, piece: str, start: int) -> None:
        if self._value is not None:
            self._value.append(piece)
            return
        if self._is_trimmed:
            # White space at the end is no part of the value, so it waits for what follows.
            size = len(piece.rstrip(BLANKS))
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
        if self._is_trimmed:
            text = stripped(text)
        if self._is_typed or self._key in body.unwrapped:
            return json_or_text(text)
        return coerced(
            text,
            self._tools.parameter(self._name, self._key),
            undeclared=body.undeclared,
            reads_python=body.reads_python,
        )

    def _end_arguments(self, offset: int) -> None:
        members = ""
        if self._object.members is not None:
            members = self._object.members
        elif self._whole is not None:
            key, value = self._whole
            self._whole = None
            is_object = value.startswith(_OBJECT_START)
            members = value[1:-1] if is_object else f"{quoted(key)}: {value}"
        self._sink.call_arguments(members + "}", offset, offset)


def _value_matcher(body: ParameterBody) -> LiteralMatcher:
    """Finds what ends a value: its end marker, or what may only come after it.

    The line feed before what follows a missing end marker belongs to the markup, not the value.
    """
    ends = (body.value_end, *body.other_value_ends)
    others = (*body.parameters, body.end, *body.other_ends, *body.value_also_ends)
    if body.trims == "newline":
        ends += tuple(_LINE_FEED + end for end in ends)
    return literal_matcher((*ends, *others, *(_LINE_FEED + other for other in others)))


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
    return stripped(tag).strip("\"'")

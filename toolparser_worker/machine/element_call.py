"""Reads one tool call spelt as a tree of elements and writes its arguments as JSON."""

from typing import Any

from toolparser_worker.machine.arguments import ObjectCollector
from toolparser_worker.machine.blanks import after_space, stripped
from toolparser_worker.machine.coercion import read_value, schema_types, written
from toolparser_worker.machine.declarations import ElementBody
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.names import MAX_NAME_CHARS, NameReader
from toolparser_worker.machine.reading import (
    DONE,
    MORE,
    MOVED,
    Answer,
    CallReader,
    CallSink,
    Plain,
    Verdict,
    plain_text,
    quoted,
)
from toolparser_worker.machine.tool_schemas import Schema, ToolSchemas, member_schema, schema_part

_MAX_DEPTH = 200
_TAG_END = ">"


class _Element:
    """An element: its text, and the elements within."""

    __slots__ = ("children", "tag", "text")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.text: list[str] = []
        self.children: list[_Element] = []


class ElementCallReader(CallReader[ElementBody]):
    """Collects the tree and writes it at the call's end (`CallReader`).

    Only then is it known which siblings repeat and so make a list.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Not needed, as the call's own end is its end.
    """

    def __init__(
        self, body: ElementBody, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        super().__init__(body, sink, tools, stops)
        self._state = self._in_name
        self._reader = NameReader((_TAG_END,), quotes="\"'")
        self._tag: list[str] = []
        self._num_tag = 0
        self._root = _Element("")
        self._open = [self._root]
        self._is_key_out = False
        self._tag_start = literal_matcher((body.tag_prefix + "<",))
        self._tag_ends = literal_matcher((_TAG_END,))
        self._object = ObjectCollector()
        self._may_be_object = True

    def close(self, offset: int) -> None:
        """Writes what was collected when the text ended (`CallReader`)."""
        if self.verdict is Verdict.CALL:
            self._write(offset)

    def plain(self) -> Plain | None:
        """Text within an element, which waits for the call's end (`CallReader`)."""
        if self._state == self._in_text and len(self._open) > 1:
            return Plain(plain_text(self._tag_start.first_chars), self._open[-1].text)
        return None

    def _in_name(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        name = self._reader.name
        if not self._reader.end or not self._sink.allows(name):
            return self._break(position)
        position += len(_TAG_END)
        at = self._base + position
        self._start(name, at)
        self._sink.call_arguments("{", at, at)
        self._state = self._between
        return MOVED, position

    def _between(self, text: str, position: int) -> Answer:
        """Between the outermost elements, where no text must be but an object in their place."""
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] == "{" and self._may_be_object:
            self._may_be_object = False
            self._state = self._in_object
            return MOVED, position
        start, stop = self._tag_start.find(text, position, final=self._final)
        if start > position:
            self.flawed = True
            self._may_be_object = False
        if start == stop:
            return MORE, start
        return self._begin_tag(stop)

    def _in_object(self, text: str, position: int) -> Answer:
        step, position = self._object.feed(text, position)
        if step is not DONE:
            return step, position
        self.flawed = self.flawed or self._object.members is None
        self._state = self._in_text
        return MOVED, position

    def _in_text(self, text: str, position: int) -> Answer:
        if len(self._open) == 1 and self._object.members is None:
            self._state = self._between
            return MOVED, position
        start, stop = self._tag_start.find(text, position, final=self._final)
        if start > position:
            if len(self._open) > 1:
                self._open[-1].text.append(text[position:start])
            elif stripped(text[position:start]):
                self.flawed = True
        if start == stop:
            return MORE, start
        return self._begin_tag(stop)

    def _begin_tag(self, position: int) -> Answer:
        self._state = self._in_tag
        self._tag = []
        self._num_tag = 0
        return MOVED, position

    def _in_tag(self, text: str, position: int) -> Answer:
        start, stop = self._tag_ends.find(text, position, final=self._final)
        last = position + MAX_NAME_CHARS - self._num_tag
        self._tag.append(text[position : min(start, last)])
        self._num_tag += start - position
        if start > last:
            return self._break(last)
        if start == stop:
            return MORE, start
        self._state = self._in_text
        tag = stripped("".join(self._tag))
        at = self._base + stop
        if tag.startswith("/"):
            return self._end_element(stripped(tag[1:]), stop)
        if len(self._open) == _MAX_DEPTH or self._object.members is not None:
            self.flawed = True
            return MOVED, stop
        self._may_be_object = False
        element = _Element(tag)
        self._open[-1].children.append(element)
        self._open.append(element)
        if len(self._open) == 2 and not self._is_key_out:
            self._is_key_out = True
            self._sink.call_arguments(f"{quoted(tag)}: ", at, at)
        return MOVED, stop

    def _end_element(self, tag: str, position: int) -> Answer:
        """Closes an element, and those within it that were left open."""
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                self.flawed = self.flawed or depth < len(self._open) - 1
                del self._open[depth:]
                return MOVED, position
        if self._body.end.endswith(f"</{tag}>"):
            self.flawed = self.flawed or len(self._open) > 1
            self._write(self._base + position)
            return self._complete(position)
        self.flawed = True
        return MOVED, position

    def _write(self, offset: int) -> None:
        if self._object.members is not None:
            self._sink.call_arguments(self._object.members + "}", offset, offset)
            return
        value = self._value_of(self._root, self._tools.parameters(self._reader.name), is_root=True)
        text = written(value)[1:]
        if self._is_key_out:
            first = next(iter(value))
            text = text[len(f"{quoted(first)}: ") :]
        self._sink.call_arguments(text, offset, offset)

    def _value_of(self, element: _Element, schema: Schema, *, is_root: bool = False) -> Any:
        text = "".join(element.text)
        if not element.children and not is_root:
            types = schema_types(schema)
            if not stripped(text) and types and "string" not in types:
                return [] if "array" in types else {} if "object" in types else None
            return read_value(text, schema)
        children = element.children
        is_list = "array" in schema_types(schema) or (
            all(child.tag == self._body.item for child in children)
        )
        if is_list and not is_root:
            items = schema_part(schema, "items")
            self.flawed = self.flawed or bool(stripped(text))
            return [self._value_of(child, items) for child in children]
        others = schema_part(schema, "additionalProperties")
        found: dict[str, Any] = {}
        repeated: set[str] = set()
        for child in children:
            inner = member_schema(schema, child.tag) or others
            value = self._value_of(child, inner)
            if child.tag in repeated:
                found[child.tag].append(value)
            elif child.tag in found:
                repeated.add(child.tag)
                found[child.tag] = [found[child.tag], value]
            else:
                found[child.tag] = value
        if stripped(text) and not is_root:
            found[self._body.mixed_key] = text
        return found

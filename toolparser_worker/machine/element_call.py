"""Reads one tool call spelt as a tree of elements and writes its arguments as JSON."""

import json
from typing import Any

from toolparser_worker.machine.coercion import coerced, schema_types
from toolparser_worker.machine.declarations import ElementBody
from toolparser_worker.machine.literals import literal_matcher
from toolparser_worker.machine.reading import (
    MAX_NAME_CHARS,
    CallReader,
    CallSink,
    Ending,
    Plain,
    Verdict,
    plain_text,
    quoted,
)
from toolparser_worker.machine.tool_schemas import Schema, ToolSchemas, member_schema, schema_part

_MAX_DEPTH = 200


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
    """

    def __init__(self, body: ElementBody, sink: CallSink, tools: ToolSchemas) -> None:
        super().__init__(body, sink, tools)
        self._state = self._in_name
        self._name = ""
        self._short = ""
        self._root = _Element("")
        self._open = [self._root]
        self._is_key_out = False
        self._tag_start = literal_matcher((body.tag_prefix + "<",))

    def close(self, offset: int) -> None:
        """Writes what was collected when the text ended (`CallReader`)."""
        if self.verdict is Verdict.CALL:
            self._write(offset)

    def plain(self) -> Plain | None:
        """Text within an element, which waits for the call's end (`CallReader`)."""
        if self._state == self._in_text and len(self._open) > 1:
            return Plain(plain_text(self._tag_start.first_chars), self._open[-1].text)
        return None

    def _until_tag_end(self, text: str, position: int) -> int:
        stop = text.find(">", position)
        self._short += text[position : stop if stop >= 0 else len(text)]
        return stop

    def _in_name(self, text: str, position: int) -> int:
        stop = self._until_tag_end(text, position)
        if len(self._short) > MAX_NAME_CHARS:
            return self._break(position)
        if stop < 0:
            return len(text)
        self._name = self._short.strip().strip("\"'")
        self._short = ""
        if not self._name or (not self._tools.allows(self._name, self._body)):
            return self._break(position)
        self.verdict = Verdict.CALL
        certain_at = self._base + stop + 1
        self._sink.call_started(self._name, certain_at)
        self._sink.call_arguments("{", certain_at, certain_at)
        self._state = self._in_text
        return stop + 1

    def _in_text(self, text: str, position: int) -> int:
        start, stop = self._tag_start.find(text, position, final=self._final)
        if start > position and len(self._open) > 1:
            self._open[-1].text.append(text[position:start])
        if start == stop:
            return start
        self._state = self._in_tag
        self._short = ""
        return stop

    def _in_tag(self, text: str, position: int) -> int:
        stop = self._until_tag_end(text, position)
        if len(self._short) > MAX_NAME_CHARS:
            return self._break(position)
        if stop < 0:
            return len(text)
        self._state = self._in_text
        tag = self._short.strip()
        if tag.startswith("/"):
            self._end_element(tag[1:].strip(), self._base + stop + 1)
        elif len(self._open) < _MAX_DEPTH:
            element = _Element(tag)
            self._open[-1].children.append(element)
            self._open.append(element)
            if len(self._open) == 2 and not self._is_key_out:
                self._is_key_out = True
                at = self._base + stop + 1
                self._sink.call_arguments(f"{quoted(tag)}: ", at, at)
        return stop + 1

    def _end_element(self, tag: str, offset: int) -> None:
        """Closes an element, and those within it that were left open."""
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return
        if self._body.end.endswith(f"</{tag}>"):
            self._write(offset)
            self.ending = Ending.COMPLETE

    def _write(self, offset: int) -> None:
        value = self._value_of(self._root, self._tools.parameters(self._name), as_dict=True)
        written = json.dumps(value, ensure_ascii=False)[1:]
        if self._is_key_out:
            first = next(iter(value))
            written = written[len(f"{quoted(first)}: ") :]
        self._sink.call_arguments(written, offset, offset)

    def _value_of(self, element: _Element, schema: Schema, *, as_dict: bool = False) -> Any:
        text = "".join(element.text)
        if not element.children and not as_dict:
            types = schema_types(schema)
            if not text.strip() and types and "string" not in types:
                return [] if "array" in types else {} if "object" in types else None
            return json.loads(coerced(text, schema))
        children = element.children
        is_list = "array" in schema_types(schema) or (
            all(child.tag == self._body.item for child in children)
        )
        if is_list and not as_dict:
            items = schema_part(schema, "items")
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
        if text.strip() and not as_dict:
            found[self._body.mixed_key] = text
        return found

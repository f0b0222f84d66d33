"""Tells the call of a custom tool: out of the arguments' JSON comes its text."""

import json
import re
from typing import Any, Final

import orjson

from gateway.http.schemas.tools.custom_tools import INPUT
from gateway.request.delivery.events import ToolCallArguments, ToolCallStarted

_TOKENS: Final = ("{", f'"{INPUT}"', ":", '"')
_BLANKS: Final = " \t\r\n"
# A string's text up to its end, or to an escape that is cut: a high surrogate waits for the low.
_HIGH: Final = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
_TEXT: Final = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    rf"|{_HIGH}(?:\\u[dD][c-fC-F][0-9a-fA-F]{{2}}"
    r"|(?=[^\\]|\\[^u]|\\u(?:[0-9abcefABCEF]|[dD][0-7abAB89]))))*+"
)


class CustomInput:
    """The text of one call, from arguments that come in pieces.

    Arguments that don't begin as `{"input": "…` are told as they are: a model that isn't held to
    a grammar may write others.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_raw = False
        self._is_open = False
        self._is_whole = False

    def feed(self, arguments: str) -> str:
        """What is known of the text with this piece."""
        if self._is_whole:
            return ""
        self._held += arguments
        if not self._is_open and not self._is_raw:
            start = _after_opening(self._held)
            if start is None:
                return ""
            self._is_raw = start < 0
            self._is_open = not self._is_raw
            self._held = self._held[max(0, start) :]
        if self._is_raw:
            text, self._held = self._held, ""
            return text
        return self._text()

    def finish(self) -> str:
        """What was held back and belongs to no text: the arguments were cut, or are others."""
        if self._is_whole or self._is_open:
            return ""
        text, self._held = self._held, ""
        return text

    def _text(self) -> str:
        found = _TEXT.match(self._held)
        end = 0 if found is None else found.end()
        written, self._held = self._held[:end], self._held[end:]
        self._is_whole = self._held.startswith('"')
        if "\\" not in written:
            return written
        text: str = json.loads(f'"{written}"', strict=False)
        # Half a pair of surrogates is a character in JSON's grammar, but in no encoding.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def custom_input(arguments: str) -> str:
    """The text of a whole call."""
    reader = CustomInput()
    return reader.feed(arguments) + reader.finish()


def tool_call(
    call_id: str, name: str, arguments: str, custom_tools: frozenset[str]
) -> dict[str, Any]:
    """A whole call, of a function or of a custom tool, as an answer's message has it."""
    if name in custom_tools:
        custom = {"name": name, "input": custom_input(arguments)}
        return {"id": call_id, "type": "custom", "custom": custom}
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


class CustomDeltas:
    """The calls of custom tools in one stream.

    Args:
        names: Of these tools.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._inputs: dict[tuple[int, int], CustomInput] = {}

    def takes(self, event: ToolCallStarted | ToolCallArguments) -> bool:
        """Whether the event is of a custom tool's call."""
        if isinstance(event, ToolCallArguments):
            return (event.choice, event.index) in self._inputs
        return event.name in self._names

    def delta(self, event: ToolCallStarted | ToolCallArguments) -> bytes | None:
        """A call's piece of a stream delta, without braces; None where nothing is known yet."""
        key = (event.choice, event.index)
        if isinstance(event, ToolCallArguments):
            text = self._inputs[key].feed(event.text)
            return _piece(event.index, text) if text else None
        self._inputs[key] = CustomInput()
        call = {
            "index": event.index,
            "id": event.id,
            "type": "custom",
            "custom": {"name": event.name, "input": ""},
        }
        return b'"tool_calls":[%b]' % orjson.dumps(call)

    def rest(self, choice: int) -> list[bytes]:
        """The pieces that are left at the end of a choice."""
        found = []
        for (of_choice, index), reader in self._inputs.items():
            text = reader.finish() if of_choice == choice else ""
            if text:
                found.append(_piece(index, text))
        return found


def _piece(index: int, text: str) -> bytes:
    return b'"tool_calls":[{"index":%d,"custom":{"input":%b}}]' % (index, orjson.dumps(text))


def _after_opening(text: str) -> int | None:
    """Where the string begins; -1 where none does, None where that isn't known yet."""
    position = 0
    for token in _TOKENS:
        while position < len(text) and text[position] in _BLANKS:
            position += 1
        if not text.startswith(token, position):
            return None if token.startswith(text[position:]) else -1
        position += len(token)
    return position

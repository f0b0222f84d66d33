"""Reads one tool call spelt as Python and writes its arguments as JSON."""

import math
import re

from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.declarations import PythonBody
from toolparser_worker.machine.json_value import MAX_NESTING
from toolparser_worker.machine.names import NameReader
from toolparser_worker.machine.python_string import PythonStringDecoder
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
)
from toolparser_worker.machine.tool_schemas import ToolSchemas

_NAME = re.compile(r"[^\W\d][\w.\-]*+")
_NAME_RUN = re.compile(r"[\w.\-]*+")
_STRING_START = re.compile(r"([rRbBuUfF]{0,2})('''|\"\"\"|'|\")")
_STRING_OPENS = re.compile(r"[rRbBuUfF]{0,2}['\"]")
_PREFIX_CUT = re.compile(r"[rRbBuUfF]{1,2}\Z")
_QUOTES_CUT = re.compile(r"[rRbBuUfF]{0,2}(?:''?|\"\"?)\Z")
_SCALAR = re.compile(r"[\w.+\-]*+")
_INTEGER = re.compile(r"([+-]?)0*([0-9](?:_?[0-9]){0,4000}?)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?")
_JSON_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_RADIX = re.compile(r"0[xXoObB][0-9a-fA-F]{1,256}")
_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_MAX_SCALAR_CHARS = 4096
_CLOSERS = {"[": "]", "(": ")", "{": "}", "?": "}", "s": "}"}


class _Frame:
    """An open bracket: `[`, `(`, `{` a dict, `s` a set, `?` one of the two.

    Attributes:
        captured: The JSON of a dict's key, or of the first item of a dict or set, which is a
            string or scalar.
        awaits_value: A dict's key has been read, and its value has not.
        is_first: Nothing stands in it yet.
    """

    __slots__ = ("awaits_value", "captured", "is_first", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_first = True
        self.awaits_value = False
        self.captured: list[str] | None = [] if kind == "?" else None


class PythonCallReader(CallReader[PythonBody]):
    """Turns `f(x=1)` into name and JSON as it comes (`CallReader`).

    It is long because each state of the automaton is a method.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Not needed, as the closing bracket is the end.
    """

    def __init__(
        self, body: PythonBody, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        super().__init__(body, sink, tools, stops)
        self._state = self._in_name
        self._reader = NameReader(("(",), run=_NAME_RUN)
        self._keys: set[str] = set()
        self._name = ""
        self._short = ""
        self._separator = ""
        self._awaits_value = False
        self._frames: list[_Frame] = []
        self._string = PythonStringDecoder("'", is_raw=False, repairs=False, is_argument=True)

    def close(self, offset: int) -> None:
        """Ends strings and brackets where the text ended (`CallReader`)."""
        if self.verdict is not Verdict.CALL:
            return
        if self._state in (self._in_string, self._string_opens):
            self._out('"', offset, offset)
            self._note_value()
        elif self._state == self._scalar:
            self._out(_scalar_json(self._short) or "null", offset, offset)
            self._note_value()
        while self._frames:
            self._close_frame(self._frames[-1], offset)
        if self._awaits_value:
            self._out("null", offset, offset)
        self._out("}", offset, offset)

    def plain(self) -> Plain | None:
        """Text within a string (`CallReader`)."""
        if self._state != self._in_string:
            return None
        captured = self._frames[-1].captured if self._frames else None
        return Plain(plain_text(self._string.quote[0] + NEEDS_ESCAPE), captured)

    def _close_frame(self, frame: _Frame, offset: int) -> None:
        captured = "".join(frame.captured or ())
        self._frames.pop()
        if frame.kind == "?":
            self._out(f"[{captured}]" if captured else "{}", offset, offset)
        else:
            ending = "}" if frame.kind == "{" else "]"
            self._out("null" + ending if frame.awaits_value else ending, offset, offset)
        self._note_value()

    def _out(self, text: str, start: int, end: int) -> None:
        """Hands JSON on, or keeps it while it may be the key of a dict."""
        if not text:
            return
        captured = self._frames[-1].captured if self._frames else None
        if captured is not None:
            captured.append(text)
            return
        self._sink.call_arguments(text, start, end)

    # Name and argument names.

    def _in_name(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        self._name = self._reader.name
        is_name = self._reader.end and _NAME.fullmatch(self._name)
        if not is_name or not self._sink.allows(self._name):
            return self._break(position)
        self._state = self._before_key
        return MOVED, position + 1

    def _before_key(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if text[position] == ")":
            self._start_call(self._base + position + 1, self._base + position)
            return self._end_call(position)
        self._state = self._in_key
        self._reader = NameReader(("=",), run=_NAME_RUN)
        return MOVED, position

    def _in_key(self, text: str, position: int) -> Answer:
        step, position = self._reader.feed(text, position, final=self._final)
        if step is not DONE:
            return step, position
        key = self._reader.name
        if not self._reader.end or not _NAME.fullmatch(key):
            return self._break(position)
        self.flawed = self.flawed or key in self._keys
        self._keys.add(key)
        at = self._base + position + 1
        self._start_call(at, at)
        self._out(f"{self._separator}{quoted(key)}: ", at, at)
        self._separator = ", "
        self._awaits_value = True
        self._state = self._value
        return MOVED, position + 1

    def _start_call(self, certain_at: int, offset: int) -> None:
        """It is a call, certain at one offset, and its arguments begin at another."""
        if self.verdict is Verdict.UNDECIDED:
            self._start(self._name, certain_at)
            self._sink.call_arguments("{", offset, offset)

    def _end_call(self, position: int) -> Answer:
        at = self._base + position
        self._out("}", at, at + 1)
        return self._complete(position + 1)

    # Values.

    def _value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        char = text[position]
        if self._frames and char == _CLOSERS[self._frames[-1].kind]:
            return self._close_bracket(position)
        if char in "[({":
            return self._open_bracket("?" if char == "{" else char, position)
        if not self._final and _PREFIX_CUT.match(text, position) is not None:
            return MORE, position
        opening = _STRING_OPENS.match(text, position)
        if opening is not None:
            self._begin_item(position)
            self._out('"', self._base + position, self._base + opening.end())
            self._state = self._string_opens
            return MOVED, position
        if _SCALAR.match(text, position).end() == position:  # type: ignore[union-attr]
            return self._break(position)
        self._begin_item(position)
        self._short = ""
        self._state = self._scalar
        return MOVED, position

    def _begin_item(self, position: int) -> None:
        """Writes what stands between this value and the one before it in its bracket."""
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.awaits_value:
            return
        if frame.kind == "{":
            frame.captured = []  # The comma comes with the key.
        elif not frame.is_first:
            self._out(", ", self._base + position, self._base + position)
        frame.is_first = False

    def _open_bracket(self, kind: str, position: int) -> Answer:
        if len(self._frames) == MAX_NESTING:
            return self._break(position)
        self._begin_item(position)
        if self._frames and self._frames[-1].captured is not None:
            return self._break(position)  # Neither a key nor an item of a set has brackets.
        if kind != "?":
            self._out("[", self._base + position, self._base + position + 1)
        self._frames.append(_Frame(kind))
        return MOVED, position + 1

    def _string_opens(self, text: str, position: int) -> Answer:
        """A string for certain: after one quote, or after three."""
        if not self._final and _QUOTES_CUT.match(text, position) is not None:
            return MORE, position
        prefix, quote = _STRING_START.match(text, position).groups()  # type: ignore[union-attr]
        self._string = PythonStringDecoder(
            quote,
            is_raw="r" in prefix.lower(),
            repairs=self._body.repairs,
            is_argument=not self._frames,
        )
        self._state = self._in_string
        return MOVED, position + len(prefix + quote)

    def _in_string(self, text: str, position: int) -> Answer:
        step, stop, decoded = self._string.step(text, position, final=self._final)
        if step is MORE:
            return step, position
        at = self._base + position
        if step is MOVED:
            self._out(escaped(decoded), at, self._base + stop)
        else:
            self._out('"', at, self._base + stop)
            self._note_value()
        return MOVED, stop

    def _scalar(self, text: str, position: int) -> Answer:
        stop = _SCALAR.match(text, position).end()  # type: ignore[union-attr]
        last = position + _MAX_SCALAR_CHARS - len(self._short)
        self._short += text[position : min(stop, last)]
        if stop > last:
            return self._break(last)
        if stop == len(text):
            return MOVED, stop
        value = _scalar_json(self._short)
        if value is None:
            return self._break(stop)
        self._out(value, self._base + stop, self._base + stop)
        self._note_value()
        return MOVED, stop

    def _note_value(self) -> None:
        """A value is complete."""
        self._state = self._after_value
        if self._frames:
            self._frames[-1].awaits_value = False
        else:
            self._awaits_value = False

    def _after_value(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        char = text[position]
        if not self._frames:
            if char == ")":
                return self._end_call(position)
            self._state = self._before_key
            return (MOVED, position + 1) if char == "," else self._break(position)
        frame = self._frames[-1]
        if char == ":" and frame.captured is not None:
            return self._end_key(frame, position)
        if frame.kind == "?":
            self._settle_set(frame, position)
        if frame.captured is not None:
            return self._break(position)
        if char == ",":
            self._state = self._value
            return MOVED, position + 1
        return (
            self._close_bracket(position) if char == _CLOSERS[frame.kind] else self._break(position)
        )

    def _end_key(self, frame: _Frame, position: int) -> Answer:
        """What was captured is the key of a dict."""
        key = "".join(frame.captured or ())
        if not key:
            return self._break(position)
        opening = "{" if frame.kind == "?" else ", "
        frame.captured = None
        frame.kind = "{"
        frame.awaits_value = True
        at = self._base + position
        text = key if key.startswith('"') else quoted(key)
        self._out(f"{opening}{text}: ", at, at + 1)
        self._state = self._value
        return MOVED, position + 1

    def _settle_set(self, frame: _Frame, position: int) -> None:
        """What was captured is the first item of a set."""
        item = "".join(frame.captured or ())
        frame.captured = None
        frame.kind = "s"
        self._out(f"[{item}", self._base + position, self._base + position)

    def _close_bracket(self, position: int) -> Answer:
        frame = self._frames[-1]
        at = self._base + position
        if frame.awaits_value:
            return self._break(position)
        self._frames.pop()
        if frame.kind == "?":
            self._out("{}", at, at + 1)
        else:
            self._out("}" if frame.kind == "{" else "]", at, at + 1)
        self._note_value()
        return MOVED, position + 1


def _scalar_json(text: str) -> str | None:
    """The JSON of a number or word, with its digits; None when it is neither."""
    if text in _WORDS:
        return _WORDS[text]
    integer = _INTEGER.fullmatch(text)
    if integer is not None:
        sign = "-" if integer[1] == "-" else ""
        return sign + integer[2].replace("_", "")
    if _FLOAT.fullmatch(text):
        if not math.isfinite(float(text)):
            return None
        return text if _JSON_FLOAT.fullmatch(text) else repr(float(text))
    if _RADIX.fullmatch(text):
        try:
            return str(int(text, 0))
        except ValueError:
            return None
    return None

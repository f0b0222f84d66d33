"""Decodes one JSON string literal as it streams in, and checks that its text is JSON itself."""

import json
import re

from toolparser_worker.machine.blanks import BLANKS, stripped
from toolparser_worker.machine.json_value import JsonValueScanner
from toolparser_worker.machine.reading import encodable

_RUN = re.compile(r'[^"\\]++')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_LONGEST_ESCAPE = 6
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_LOW_SURROGATE = re.compile(r"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_PAIR = 2 * _LONGEST_ESCAPE


class JsonStringDecoder:
    """Takes a string literal from its opening quote on, and gives the text it stands for.

    Attributes:
        beginning: The first text that is more than white space, with what came with it; empty
            until then.
    """

    __slots__ = ("_is_open", "_rest", "_scanner", "beginning")

    def __init__(self) -> None:
        self.beginning = ""
        self._rest = ""
        self._is_open = False
        self._scanner = JsonValueScanner()

    @property
    def holds_json(self) -> bool:
        """Whether the text so far is one complete and valid JSON value."""
        return self._scanner.done and not self._scanner.flawed

    def feed(self, piece: str) -> str:
        """Takes more of the literal, which ends where the string does.

        Returns:
            The text that is certain by it.
        """
        text = self._rest + piece
        position = 0
        found: list[str] = []
        if not self._is_open and text:
            self._is_open = True
            position = 1
        while position < len(text):
            char = text[position]
            if char == '"':
                position += 1
            elif char != "\\":
                run = _RUN.match(text, position)
                stop = run.end()  # type: ignore[union-attr]
                found.append(text[position:stop])
                position = stop
            else:
                stop = self._escape_end(text, position)
                if stop is None:
                    break
                found.append(_unescaped(text[position:stop]))
                position = stop
        self._rest = text[position:]
        decoded = "".join(found)
        self._check(decoded)
        if not self.beginning:
            self.beginning = decoded.lstrip(BLANKS)
        return decoded

    def _escape_end(self, text: str, position: int) -> int | None:
        """Where the escape, or pair of escapes, at a position ends; None while it is cut off."""
        escape = _ESCAPE.match(text, position)
        if escape is None:
            if len(text) - position < _LONGEST_ESCAPE and '"' not in text[position + 1 :]:
                return None
            return position + 1  # Not a valid escape: the backslash stands for itself.
        stop = escape.end()
        if _HIGH_SURROGATE.match(text, position):
            second = _LOW_SURROGATE.match(text, stop)
            if second is not None:
                return second.end()
            if len(text) - position < _PAIR and '"' not in text[stop:]:
                return None
        return stop

    def _check(self, decoded: str) -> None:
        scanner = self._scanner
        rest = decoded[scanner.feed(decoded, 0) :] if not scanner.broken else ""
        if scanner.done and stripped(rest):
            scanner.flawed = True


def _unescaped(escape: str) -> str:
    if escape == "\\":
        return escape
    return encodable(json.loads(f'"{escape}"'))

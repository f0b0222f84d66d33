"""Decodes one Python string literal as it streams in."""

import re

from toolparser_worker.machine.blanks import BLANK
from toolparser_worker.machine.reading import DONE, MORE, MOVED, Step, encodable

_SIMPLE = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "a": "\a",
    "0": "\0",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "\n": "",
}
_NUM_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]*")
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]")
_LOW_SURROGATE = re.compile(r"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_MAY_BE_LOW = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?")
_LOOKAHEAD_CHARS = 64
_ENDS_ARGUMENT = re.compile(
    rf"{BLANK}*(?:,{BLANK}*[^\W\d]\w*{BLANK}*=|,?{BLANK}*\){BLANK}*(?:[,\]<]|\Z))"
)
_ENDS_ITEM = re.compile(rf"{BLANK}*[,\]}}:)]")
_MAY_YET_END = re.compile(rf"{BLANK}*(?:,{BLANK}*(?:[^\W\d]\w*{BLANK}*)?|,?{BLANK}*\){BLANK}*)?")


class PythonStringDecoder:
    """Takes the inside of a string literal, whose opening quote has been read.

    Args:
        quote: The quote, one or three characters.
        is_raw: Backslashes are ordinary characters.
        repairs: A quote ends the string only if what follows it can follow a string.
        is_argument: The string is the whole value of an argument, not an item of one.

    Attributes:
        quote: As given.
    """

    def __init__(self, quote: str, *, is_raw: bool, repairs: bool, is_argument: bool) -> None:
        self.quote = quote
        self._is_raw = is_raw
        self._run = re.compile(rf"[^{quote[0]}\\]++")
        self._repairs = (_ENDS_ARGUMENT if is_argument else _ENDS_ITEM) if repairs else None

    def step(self, text: str, position: int, *, final: bool) -> tuple[Step, int, str]:
        """Takes one run of characters, one escape or the closing quote.

        Returns:
            How it went (`DONE` after the closing quote), the position after it, and the text that
            it stands for.
        """
        char = text[position]
        if char == "\\":
            return self._escape(text, position, final=final)
        if char != self.quote[0]:
            stop = self._run.match(text, position).end()  # type: ignore[union-attr]
            return MOVED, stop, text[position:stop]
        if not text.startswith(self.quote, position):
            if self.quote.startswith(text[position:]) and not final:
                return MORE, position, ""
            return MOVED, position + 1, char
        stop = position + len(self.quote)
        if self._repairs is not None:
            step = self._is_end(self._repairs, text, stop, final=final)
            if step is not DONE:
                return step, position + (step is MOVED), char if step is MOVED else ""
        return DONE, stop, ""

    def _is_end(self, ends: re.Pattern[str], text: str, stop: int, *, final: bool) -> Step:
        """Whether a quote before `stop` ends the string: `MOVED` when it belongs to it."""
        rest = text[stop : stop + _LOOKAHEAD_CHARS]
        if ends.match(rest + "x") is not None:
            return DONE
        is_all = stop + len(rest) == len(text)
        if final:
            return DONE if is_all and ends.match(rest) is not None else MOVED
        is_cut = is_all and len(rest) < _LOOKAHEAD_CHARS
        return MORE if is_cut and _MAY_YET_END.fullmatch(rest) is not None else MOVED

    def _escape(self, text: str, position: int, *, final: bool) -> tuple[Step, int, str]:
        if position + 1 == len(text):
            return (MOVED, position + 1, "\\") if final else (MORE, position, "")
        following = text[position + 1]
        if self._is_raw:
            return MOVED, position + 2, text[position : position + 2]
        if following in _NUM_HEX_DIGITS:
            return self._hex_escape(text, position, _NUM_HEX_DIGITS[following], final=final)
        meant = _SIMPLE.get(following)
        if meant is not None:
            return MOVED, position + 2, meant
        return MOVED, position + 1, "\\"  # Python keeps the backslash of an unknown escape.

    def _hex_escape(
        self, text: str, position: int, num_digits: int, *, final: bool
    ) -> tuple[Step, int, str]:
        start = position + 2
        stop = _HEX.match(text, start, start + num_digits).end()  # type: ignore[union-attr]
        if stop - start == num_digits:
            code = int(text[start:stop], 16)
            if _HIGH_SURROGATE.match(text, position):
                return self._pair(code, text, position, stop, final=final)
            return MOVED, stop, encodable(chr(code)) if code <= 0x10FFFF else "\ufffd"
        if stop == len(text) and not final:
            return MORE, position, ""
        return MOVED, position + 1, "\\"

    def _pair(
        self, high: int, text: str, position: int, stop: int, *, final: bool
    ) -> tuple[Step, int, str]:
        """The first of what may be two escapes for one character, as JSON has them."""
        low = _LOW_SURROGATE.match(text, stop)
        if low is not None:
            code = 0x10000 + ((high - 0xD800) << 10) + int(low.group()[2:], 16) - 0xDC00
            return MOVED, low.end(), chr(code)
        if not final and _MAY_BE_LOW.fullmatch(text, stop) is not None:
            return MORE, position, ""
        return MOVED, stop, "\ufffd"

"""Decodes one Python string literal as it streams in."""

import re

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
_LOOKAHEAD_CHARS = 64
_ENDS_ARGUMENT = re.compile(r"\s*(?:,\s*[^\W\d]\w*\s*=|,?\s*\)\s*(?:[,\]<]|\Z))")
_ENDS_ITEM = re.compile(r"\s*[,\]}:)]")


class PythonStringDecoder:
    """Takes the inside of a string literal, whose opening quote has been read.

    Args:
        quote: The quote, one or three characters.
        is_raw: Backslashes are ordinary characters.
        repairs: A quote ends the string only if what follows it can follow a string.
        is_argument: The string is the whole value of an argument, not an item of one.

    Attributes:
        done: The closing quote was read.
        quote: As given.
    """

    def __init__(self, quote: str, *, is_raw: bool, repairs: bool, is_argument: bool) -> None:
        self.done = False
        self.quote = quote
        self._is_raw = is_raw
        self._run = re.compile(rf"[^{quote[0]}\\]++")
        self._repairs = (_ENDS_ARGUMENT if is_argument else _ENDS_ITEM) if repairs else None

    def step(self, text: str, position: int, *, final: bool) -> tuple[str, int]:
        """Takes one run of characters, one escape or the closing quote.

        Returns:
            The text that it stands for, and the position after it; the same position when more
            text is needed to tell.
        """
        char = text[position]
        if char == "\\":
            return self._escape(text, position, final=final)
        if char != self.quote[0]:
            stop = self._run.match(text, position).end()  # type: ignore[union-attr]
            return text[position:stop], stop
        if not text.startswith(self.quote, position):
            if self.quote.startswith(text[position:]) and not final:
                return "", position
            return char, position + 1
        stop = position + len(self.quote)
        if self._repairs is not None:
            rest = text[stop : stop + _LOOKAHEAD_CHARS]
            if self._repairs.match(rest) is None:
                is_cut = len(rest) < _LOOKAHEAD_CHARS and not final
                return ("", position) if is_cut and _may_yet_end(rest) else (char, position + 1)
            if not final and self._repairs.match(rest + "x") is None:
                return "", position  # It matches only if the text ends here.
        self.done = True
        return "", stop

    def _escape(self, text: str, position: int, *, final: bool) -> tuple[str, int]:
        if position + 1 == len(text):
            return ("\\", position + 1) if final else ("", position)
        following = text[position + 1]
        if self._is_raw:
            return text[position : position + 2], position + 2
        if following in _NUM_HEX_DIGITS:
            return self._hex_escape(text, position, _NUM_HEX_DIGITS[following], final=final)
        meant = _SIMPLE.get(following)
        if meant is not None:
            return meant, position + 2
        return "\\", position + 1  # Python keeps the backslash of an unknown escape.

    def _hex_escape(
        self, text: str, position: int, num_digits: int, *, final: bool
    ) -> tuple[str, int]:
        start = position + 2
        stop = _HEX.match(text, start, start + num_digits).end()  # type: ignore[union-attr]
        if stop - start == num_digits:
            code = int(text[start:stop], 16)
            return (chr(code) if code <= 0x10FFFF else "\ufffd"), stop
        if stop == len(text) and not final:
            return "", position
        return "\\", position + 1


def _may_yet_end(rest: str) -> bool:
    """Whether text after a quote could still become what follows the end of a string."""
    return re.fullmatch(r"\s*(?:,\s*(?:[^\W\d]\w*\s*)?|,?\s*\)\s*)?", rest) is not None

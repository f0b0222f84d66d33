"""Finds the end of one JSON value in a stream and checks that it is valid (RFC 8259)."""

import re

from toolparser_worker.machine.blanks import after_space

MAX_NESTING = 16_384
"""Brackets that may be open at once; a value that nests deeper counts as broken."""

_STRING_RUN = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_SIMPLE_ESCAPES = frozenset('"\\/bfnrt')
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

(
    _VALUE,
    _VALUE_OR_END,
    _KEY,
    _KEY_OR_END,
    _COLON,
    _AFTER,
    _STRING,
    _ESCAPE,
    _UNICODE,
    _SCALAR,
) = range(10)


def _scalar_steps() -> dict[str, dict[str, str]]:
    """The automaton of numbers and words: state → character → next state; `""` is the start."""
    digits = "0123456789"
    steps: dict[str, dict[str, str]] = {
        "": {"-": "-", "0": "0"} | dict.fromkeys(digits[1:], "int"),
        "-": {"0": "0"} | dict.fromkeys(digits[1:], "int"),
        "0": {".": ".", "e": "e", "E": "e"},
        "int": {".": ".", "e": "e", "E": "e"} | dict.fromkeys(digits, "int"),
        ".": dict.fromkeys(digits, "fraction"),
        "fraction": {"e": "e", "E": "e"} | dict.fromkeys(digits, "fraction"),
        "e": {"+": "e+", "-": "e+"} | dict.fromkeys(digits, "exponent"),
        "e+": dict.fromkeys(digits, "exponent"),
        "exponent": dict.fromkeys(digits, "exponent"),
    }
    for word in ("true", "false", "null"):
        for size in range(len(word)):
            steps.setdefault(word[:size], {})[word[size]] = word[: size + 1]
        steps[word] = {}
    return steps


_SCALAR_STEPS = _scalar_steps()
_SCALAR_ENDS = frozenset({"0", "int", "fraction", "exponent", "true", "false", "null"})


class JsonValueScanner:
    """Follows one JSON value through any number of feeds, keeping only its open brackets.

    Attributes:
        done: The value is complete; the scanner takes no more.
        broken: The character at the returned position cannot be; the scanner takes no more.
        flawed: A string has a raw control character or a wrong escape. Models do write these, and
            where the string ends is still clear, so the scanner goes on.
    """

    __slots__ = (
        "_digits_left",
        "_is_key",
        "_open",
        "_scalar",
        "_state",
        "broken",
        "done",
        "flawed",
    )

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self.flawed = False
        self._state = _VALUE
        self._open = bytearray()
        self._is_key = False
        self._digits_left = 0
        self._scalar = ""

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string, and is not part of an escape."""
        return self._state == _STRING

    def feed(self, text: str, position: int) -> int:
        """Takes `text[position:]` up to the end of the value.

        Returns:
            The position of the first character that was not taken; the length of the text unless
            the value is done or broken.
        """
        end = len(text)
        while position < end and not self.done and not self.broken:
            state = self._state
            if state == _STRING:
                # Nearly all of a stream's deltas lie within one string.
                position = _STRING_RUN.match(text, position).end()  # type: ignore[union-attr]
                if position < end:
                    position = self._string_stop(text[position], position)
            elif state == _SCALAR:
                position = self._scalar_run(text, position)
            elif state == _ESCAPE:
                position = self._escape(text, position)
            elif state == _UNICODE:
                position = self._unicode(text, position)
            else:
                position = after_space(text, position)
                if position < end:
                    position = self._structure(text[position], position)
        return position

    def _string_stop(self, char: str, position: int) -> int:
        """Takes the character that a run of ordinary string characters stopped at."""
        if char == '"':
            if self._is_key:
                self._state = _COLON
            else:
                self._value_ended()
        elif char == "\\":
            self._state = _ESCAPE
        else:
            self.flawed = True
        return position + 1

    def _escape(self, text: str, position: int) -> int:
        char = text[position]
        self._state = _STRING
        if char == "u":
            self._state = _UNICODE
            self._digits_left = 4
        elif char not in _SIMPLE_ESCAPES:
            self.flawed = True
        return position + 1

    def _unicode(self, text: str, position: int) -> int:
        if text[position] not in _HEX_DIGITS:
            self.flawed = True
            self._state = _STRING
            return position
        self._digits_left -= 1
        if not self._digits_left:
            self._state = _STRING
        return position + 1

    def _scalar_run(self, text: str, position: int) -> int:
        scalar = self._scalar
        end = len(text)
        while position < end:
            following = _SCALAR_STEPS[scalar].get(text[position])
            if following is None:
                if scalar in _SCALAR_ENDS:
                    self._value_ended()
                else:
                    self.broken = True
                break
            scalar = following
            position += 1
        self._scalar = scalar
        return position

    def _structure(self, char: str, position: int) -> int:
        """Takes the one character that is neither space nor inside a string or scalar."""
        state = self._state
        if state == _VALUE or (state == _VALUE_OR_END and char != "]"):
            self._value_begins(char)
        elif state == _AFTER and char == ",":
            self._state = _KEY if self._open[-1] == ord("{") else _VALUE
        elif state == _COLON and char == ":":
            self._state = _VALUE
        elif char == '"' and state in (_KEY, _KEY_OR_END):
            self._is_key = True
            self._state = _STRING
        elif (char == "}" and self._may_close("{", _KEY_OR_END)) or (
            char == "]" and self._may_close("[", _VALUE_OR_END)
        ):
            self._open.pop()
            self._value_ended()
        else:
            self.broken = True
        if self.broken or self._state == _SCALAR:
            return position  # A scalar's first character is a step of its automaton.
        return position + 1

    def _may_close(self, bracket: str, state_when_empty: int) -> bool:
        return self._state == state_when_empty or (
            self._state == _AFTER and self._open[-1] == ord(bracket)
        )

    def _value_begins(self, char: str) -> None:
        if char == '"':
            self._is_key = False
            self._state = _STRING
        elif char in "{[":
            if len(self._open) == MAX_NESTING:
                self.broken = True
                return
            self._open.append(ord(char))
            self._state = _KEY_OR_END if char == "{" else _VALUE_OR_END
        elif char in _SCALAR_STEPS[""]:
            self._scalar = ""
            self._state = _SCALAR
        else:
            self.broken = True

    def _value_ended(self) -> None:
        self._state = _AFTER
        self.done = not self._open

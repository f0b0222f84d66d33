"""Follows the JSON of a call's arguments, and makes an object of it if it can."""

import enum
import json
from collections.abc import Callable

from toolparser_worker.machine.json_string import JsonStringDecoder
from toolparser_worker.machine.json_value import JsonValueScanner
from toolparser_worker.machine.reading import DONE, MORE, Answer

NO_ARGUMENTS = "{}"


class _Mode(enum.Enum):
    BEGINS = enum.auto()
    VERBATIM = enum.auto()
    NULL = enum.auto()
    STRING = enum.auto()
    UNPACKED = enum.auto()


class ArgumentsScanner:
    """Hands on the arguments as they come; one JSON value, whose first character is no blank.

    An object leaves as it is written. `null` and a string of nothing but white space are `{}`. A
    string that holds an object stands for that object. Anything else leaves as it is written,
    but is `flawed`.

    Args:
        emit: Takes text and where it stands in the whole text.

    Attributes:
        flawed: The value is no object, or not valid.
    """

    __slots__ = ("_decoder", "_emit", "_held", "_mode", "_scanner", "_start", "flawed")

    def __init__(self, emit: Callable[[str, int, int], None]) -> None:
        self.flawed = False
        self._emit = emit
        self._scanner = JsonValueScanner()
        self._decoder = JsonStringDecoder()
        self._mode = _Mode.BEGINS
        self._held: list[str] = []
        self._start = 0

    @property
    def done(self) -> bool:
        """Whether the value is complete."""
        return self._scanner.done

    @property
    def broken(self) -> bool:
        """Whether the character at the position that `feed` returned cannot be."""
        return self._scanner.broken

    @property
    def is_plain(self) -> bool:
        """Whether text without quotes, backslashes and control characters is only more of it."""
        return self._mode is _Mode.VERBATIM and self._scanner.in_string

    def feed(self, text: str, position: int, base: int) -> int:
        """Takes `text[position:]` up to the end of the value.

        Args:
            text: With the value's text from `position` on.
            position: Where the new text begins.
            base: The offset of `text[0]` in the whole text.

        Returns:
            The position of the first character that was not taken.
        """
        scanner = self._scanner
        stop = scanner.feed(text, position)
        if stop > position:
            piece = text[position:stop]
            if self._mode is _Mode.VERBATIM:
                self._emit(piece, base + position, base + stop)
            else:
                self._take(piece, base + position)
        if scanner.done:
            self._end()
        elif scanner.broken and self._mode in (_Mode.NULL, _Mode.STRING):
            self._give_up(base + stop)
        return stop

    def _take(self, piece: str, start: int) -> None:
        if self._mode is _Mode.BEGINS:
            self._start = start
            self._mode = {'"': _Mode.STRING, "n": _Mode.NULL}.get(piece[0], _Mode.VERBATIM)
            self.flawed = self._mode is _Mode.VERBATIM and piece[0] != "{"
        end = start + len(piece)
        if self._mode is _Mode.VERBATIM:
            self._emit(piece, start, end)
        elif self._mode is _Mode.NULL:
            self._held.append(piece)
        else:
            self._unpack(piece, end)

    def _unpack(self, piece: str, end: int) -> None:
        """Takes more of a string, which holds an object if its text begins like one."""
        decoded = self._decoder.feed(piece)
        if self._mode is _Mode.STRING:
            self._held.append(piece)
            decoded = self._decoder.beginning
            if not decoded:
                return
            if decoded[0] != "{":
                self._give_up(end)
                return
            self._mode = _Mode.UNPACKED
            self._held.clear()
        if decoded:
            # It is told where its literal began, as its own characters have no place in the text.
            self._emit(decoded, self._start, self._start)

    def _give_up(self, end: int) -> None:
        """It is no object: what was held leaves as it is written."""
        self._mode = _Mode.VERBATIM
        self.flawed = True
        if self._held:
            self._emit("".join(self._held), self._start, end)
            self._held.clear()

    def _end(self) -> None:
        if self._mode is _Mode.NULL or self._mode is _Mode.STRING:
            self._emit(NO_ARGUMENTS, self._start, self._start)
        elif self._mode is _Mode.UNPACKED:
            self.flawed = not self._decoder.holds_json
        else:
            self.flawed = self.flawed or self._scanner.flawed


class ObjectCollector:
    """Collects a JSON object that stands where a format has something else for arguments.

    Attributes:
        members: What stands between its braces, once it is complete and valid.
    """

    def __init__(self) -> None:
        self.members: str | None = None
        self._scanner = JsonValueScanner()
        self._pieces: list[str] = []

    def feed(self, text: str, position: int) -> Answer:
        """Takes `text[position:]`, which begins with the object or goes on with it.

        Returns:
            `DONE` after the object, or at a character that can't be in it; else `MORE`.
        """
        scanner = self._scanner
        stop = scanner.feed(text, position)
        self._pieces.append(text[position:stop])
        if scanner.done:
            self.members = _members("".join(self._pieces))
        return DONE if scanner.done or scanner.broken else MORE, stop


def _members(text: str) -> str | None:
    """The inside of an object, if clients can read it."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    return text[1:-1]

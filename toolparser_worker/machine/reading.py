"""What the machine and the readers of calls agree on."""

import enum
import json
import re
from typing import Protocol

MAX_NAME_CHARS = 512
"""The longest name, header or tag; what goes on for longer is no call."""

LIST_START, LIST_END, COMMA = "[", "]", ","
"""What a list of calls is written with."""

SPACE = re.compile(r"[ \t\n\r]*+")
_NEEDS_ESCAPE = re.compile(r'["\\\x00-\x1f]')


class CallSink(Protocol):
    """Takes what a call turns out to be, in the order of the text; offsets are absolute."""

    def call_started(self, name: str, end: int) -> None:
        """It is a call for certain; `end` is the offset after what made it so."""

    def call_arguments(self, text: str, start: int, end: int) -> None:
        """More of the arguments' JSON text; `start == end` for what the model left out."""


class Verdict(enum.Enum):
    """What the text in a reader's hands is."""

    UNDECIDED = enum.auto()
    CALL = enum.auto()
    TEXT = enum.auto()


class Ending(enum.Enum):
    """Whether and how a reader's text has ended."""

    OPEN = enum.auto()
    COMPLETE = enum.auto()
    BROKEN = enum.auto()


class CallReader(Protocol):
    """Reads one call of one shape.

    Attributes:
        verdict: `UNDECIDED` until it is certain what the text is.
        ending: `COMPLETE` after the call's own end; `BROKEN` when the character at the returned
            position cannot be.
        flawed: The call is complete but its arguments are not valid.
    """

    verdict: Verdict
    ending: Ending
    flawed: bool

    def feed(self, text: str, position: int, base: int, *, final: bool) -> int:
        """Takes `text[position:]` up to the end of the call.

        Args:
            text: New text, possibly with text before it that was already dealt with.
            position: Where the new text begins.
            base: The offset of `text[0]` in the whole text.
            final: No more text will follow.

        Returns:
            The position of the first character that was not taken. While `ending` is `OPEN`, a
            short rest may be left that means nothing yet; it comes again with more text.
        """

    def close(self, offset: int) -> None:
        """The text ended within the call: makes JSON that the reader itself writes whole."""


def starts_with(text: str, position: int, literal: str, *, final: bool) -> bool | None:
    """Whether a literal stands at a position; None while the text is too short to tell."""
    if text.startswith(literal, position):
        return True
    if not final and literal.startswith(text[position : position + len(literal)]):
        return None
    return False


def find_at(
    text: str, position: int, literals: tuple[str, ...], *, final: bool
) -> tuple[str, bool]:
    """The longest of some literals that stands at a position.

    Returns:
        The literal, empty for none, and whether more text could make it a longer one.
    """
    best = ""
    for literal in literals:
        found = starts_with(text, position, literal, final=final)
        if found is None:
            return "", True
        if found and len(literal) > len(best):
            best = literal
    return best, False


def escaped(text: str) -> str:
    """Text as it stands inside a JSON string."""
    if _NEEDS_ESCAPE.search(text) is None:
        return text
    return json.dumps(text, ensure_ascii=False)[1:-1]


def quoted(text: str) -> str:
    """Text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)

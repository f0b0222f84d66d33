"""What the machine and the readers of calls agree on."""

import enum
import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from toolparser_worker.machine.declarations import CallBody
from toolparser_worker.machine.tool_schemas import ToolSchemas

BodyT = TypeVar("BodyT", bound=CallBody)

LIST_START, LIST_END, COMMA = "[", "]", ","
"""What a list of calls is written with."""

NEEDS_ESCAPE = '"\\' + "".join(map(chr, range(32)))
"""Characters that a JSON string can't have as they are."""
_NEEDS_ESCAPE = re.compile(r'["\\\x00-\x1f]')
_SURROGATE = re.compile("[\ud800-\udfff]")


class CallSink(Protocol):
    """Takes what a call turns out to be, in the order of the text; offsets are absolute."""

    def allows(self, name: str) -> bool:
        """Whether a call may have this name where it stands, and is not plain text."""

    def call_started(self, name: str, end: int, given_id: str = "") -> None:
        """It is a call for certain; `end` is the offset after what made it so.

        The model may have given it an id.
        """

    def call_arguments(self, text: str, start: int, end: int) -> None:
        """More of the arguments' JSON text; `start == end` for what the model left out."""


class Step(enum.Enum):
    """What a state answers, with the position that it came to.

    `MOVED`: the text up to there is dealt with, or another state follows; go on from there.
    `MORE`: what stands there means nothing yet; it comes again with more text. Never the answer
    when no more text will follow, unless all of it was taken.
    `DONE`: the reading is over there.
    """

    MOVED = enum.auto()
    MORE = enum.auto()
    DONE = enum.auto()


MOVED, MORE, DONE = Step
Answer = tuple[Step, int]
State = Callable[[str, int], Answer]


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


class PlainText:
    """Tells text that can only stand for itself, whatever follows it.

    Args:
        special: The characters that may stand for something else.
        last: Those that wait for what follows when they come last.

    Attributes:
        chars: All characters that mean more than themselves when they come alone.
        blanks: Those of them that only wait for what follows.
        search: Finds in a longer text what means more than itself.
    """

    __slots__ = ("blanks", "chars", "search")

    def __init__(self, special: str, last: str) -> None:
        self.chars = frozenset(special + last)
        self.blanks = frozenset(last).difference(special)
        found = [f"[{re.escape(special)}]"] if special else []
        found += [f"[{re.escape(last)}]\\Z"] if last else []
        self.search = re.compile("|".join(found) or r"(?!)").search


@lru_cache(maxsize=1024)
def plain_text(special: str, last: str = "") -> PlainText:
    """The same for the same characters, made once in the process."""
    return PlainText(special, last)


class Plain(NamedTuple):
    """Where text goes that is only more of the arguments.

    Attributes:
        text: Tells which text that is.
        gathers: Takes it; None when it leaves at once, verbatim.
        waits: Takes blanks that wait for what follows, and then leave with it.
    """

    text: PlainText
    gathers: list[str] | None = None
    waits: list[str] | None = None


class CallReader(Generic[BodyT]):
    """Reads one call of one shape, in states that each take as much text as they can.

    A state is a method that takes the text and a position, and answers how it went and the
    position of the first character that it left (`Step`). `_state` is the next one to be asked;
    subclasses set the first.

    Args:
        body: How the call is spelt.
        sink: Is told the name and the arguments.
        tools: The request's tools.
        stops: Texts that end the arguments even where they have not begun.

    Attributes:
        verdict: `UNDECIDED` until it is certain what the text is.
        ending: `COMPLETE` after the call's own end; `BROKEN` when the character at the returned
            position cannot be.
        flawed: The call is complete but something in it is not as it must be, or is left out.
        writes_json: The arguments' JSON is the reader's own and not the model's.
    """

    writes_json: ClassVar[bool] = True
    _state: State

    def __init__(
        self, body: BodyT, sink: CallSink, tools: ToolSchemas, stops: tuple[str, ...] = ()
    ) -> None:
        self.verdict = Verdict.UNDECIDED
        self.ending = Ending.OPEN
        self.flawed = False
        self._body = body
        self._sink = sink
        self._tools = tools
        self._stops = stops
        self._base = 0
        self._final = False

    def feed(self, text: str, position: int, base: int, *, final: bool) -> Answer:
        """Takes `text[position:]` up to the end of the call.

        Args:
            text: New text, possibly with text before it that was already dealt with.
            position: Where the new text begins.
            base: The offset of `text[0]` in the whole text.
            final: No more text will follow.

        Returns:
            `DONE` when the call has ended, as `ending` says; else `MORE`. With it the position
            of the first character that was not taken.
        """
        self._base = base
        self._final = final
        end = len(text)
        step = MORE
        while position < end:
            step, position = self._state(text, position)
            if step is not MOVED:
                return step, position
        return MORE, position

    def close(self, offset: int) -> None:
        """The text ended or broke within the call: makes JSON that the reader itself writes whole.

        Nothing to do where the arguments are the model's own text.
        """

    @property
    def is_whole(self) -> bool:
        """Whether the call may end where it is, at the end of the text."""
        return False

    @property
    def takes_rest(self) -> bool:
        """Whether what follows a break still is part of the arguments, which are the model's."""
        return False

    def plain(self) -> Plain | None:
        """Which text is now only more of the arguments; None where all needs to be looked at."""
        return None

    def _start(self, name: str, certain_at: int, given_id: str = "") -> None:
        """It is a call for certain."""
        self.verdict = Verdict.CALL
        self._sink.call_started(name, certain_at, given_id)

    def _complete(self, position: int) -> Answer:
        """The call ends at a position."""
        self.ending = Ending.COMPLETE
        return DONE, position

    def _break(self, position: int) -> Answer:
        """Ends the reading at a character that cannot be."""
        if self.verdict is Verdict.UNDECIDED:
            self.verdict = Verdict.TEXT
        self.ending = Ending.BROKEN
        return DONE, position


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
    """Text as a JSON string; a lone surrogate in it is U+FFFD."""
    return json.dumps(encodable(text), ensure_ascii=False)


def encodable(text: str) -> str:
    """Text with U+FFFD for each lone surrogate, which no UTF-8 can spell.

    Escapes in a model's text may stand for one; a message that held it could not be sent.
    """
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)

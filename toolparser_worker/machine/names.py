"""Reads a name up to where a name must end, which is the first character that none can have."""

import re
from typing import Final

from toolparser_worker.machine.blanks import after_space
from toolparser_worker.machine.reading import DONE, MORE, MOVED, Answer, State, find_at

MAX_NAME_CHARS: Final = 512
"""The longest name or tag; what goes on for longer is no call."""

NAME_RUN: Final = re.compile(r"[\w.:/@$+~#%&!?*^-]*+")
"""What names of tools are made of, where they do not stand in JSON."""

_NO_QUOTE: Final = ""


class NameReader:
    """Reads `[lead] ["]NAME["] end`, white space between the parts allowed.

    Args:
        ends: Texts of which one must follow the name.
        lead: A text that must stand before it.
        quotes: Characters that may stand around it.
        run: What the name is made of.
        blanks: White space that may follow it.

    Attributes:
        name: As far as it was read.
        end: Which of the ends follows it; empty when none does, so that it is no name.
    """

    def __init__(
        self,
        ends: tuple[str, ...],
        *,
        lead: str = "",
        quotes: str = "",
        run: re.Pattern[str] = NAME_RUN,
        blanks: re.Pattern[str] | None = None,
    ) -> None:
        self.name = ""
        self.end = ""
        self._ends = ends
        self._lead = lead
        self._quotes = quotes
        self._quote = _NO_QUOTE
        self._run = run
        self._blanks = blanks
        self._final = False
        self._state: State = self._before

    def feed(self, text: str, position: int, *, final: bool) -> Answer:
        """Takes `text[position:]` up to the end of the name.

        Returns:
            `DONE` at the text that ends the name, or at the character that can't be in it or
            after it; else `MORE`.
        """
        self._final = final
        end = len(text)
        while position < end:
            step, position = self._state(text, position)
            if step is not MOVED:
                return step, position
        return MORE, position

    def _before(self, text: str, position: int) -> Answer:
        position = after_space(text, position)
        if position == len(text):
            return MOVED, position
        if self._lead:
            lead, is_cut = find_at(text, position, (self._lead,), final=self._final)
            if not lead:
                return (MORE if is_cut else DONE), position
            self._lead = ""
            return MOVED, position + len(lead)
        self._state = self._inside
        if text[position] in self._quotes:
            self._quote = text[position]
            return MOVED, position + 1
        return MOVED, position

    def _inside(self, text: str, position: int) -> Answer:
        stop = self._run.match(text, position).end()  # type: ignore[union-attr]
        last = position + MAX_NAME_CHARS - len(self.name)
        self.name += text[position : min(stop, last)]
        if stop > last:
            return DONE, last
        if stop == len(text):
            return MOVED, stop
        if not self.name:
            return DONE, stop
        self._state = self._after
        if self._quote:
            if text[stop] != self._quote:
                return DONE, stop
            stop += 1
        return MOVED, stop

    def _after(self, text: str, position: int) -> Answer:
        if self._blanks is None:
            position = after_space(text, position)
        else:
            position = self._blanks.match(text, position).end()  # type: ignore[union-attr]
        if position == len(text):
            return MOVED, position
        self.end, is_cut = find_at(text, position, self._ends, final=self._final)
        return (MORE if is_cut else DONE), position

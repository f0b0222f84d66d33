"""Counts the tokens of an output's reasoning, and ends it when they are used up."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from engine_worker.errors import InvalidRequestError
from protocol.wire.messages import Thought

MAX_MARKERS: Final = 128
MAX_MARKER_CHARACTERS: Final = 256
_MAX_WAIT_TOKENS: Final = 16
"""So long a character that is not whole is waited for; what takes more tokens is broken bytes."""


class ThoughtLimit:
    """The reasoning of one output, token by token.

    What an earlier attempt generated is pushed through the same way, so that an output goes on
    elsewhere exactly as it would have here. Markers are looked for in the text, because some are
    spelt with ordinary tokens; those that are special tokens must stay in the text.

    Args:
        thought: How the model writes its reasoning.
        max_tokens: Tokens of reasoning, those of markers left out.
        encode: The token ids of a text, special tokens read as such.

    Raises:
        InvalidRequestError: The markers are too many, empty or too long.

    Attributes:
        is_inside: Whether the output is in reasoning.
    """

    def __init__(
        self, thought: Thought, max_tokens: int, encode: Callable[[str], Sequence[int]]
    ) -> None:
        markers = (*thought.starts, *thought.ends, thought.closing)
        others = (thought.before, thought.closing_again)
        if max_tokens < 0 or len(markers) > MAX_MARKERS or not thought.ends:
            raise InvalidRequestError("'thought' is out of its range.", param="thought")
        is_short = all(len(text) <= MAX_MARKER_CHARACTERS for text in (*markers, *others))
        if not is_short or not all(markers):
            raise InvalidRequestError(
                f"A marker of reasoning has 1 to {MAX_MARKER_CHARACTERS} characters.",
                param="thought",
            )
        self.is_inside = thought.begins == "open"
        self._thought = thought
        # The last one is written as often as it takes.
        self._closings = [tuple(encode(thought.closing))]
        if thought.closing_again:
            self._closings.append(tuple(encode(thought.closing_again)))
        self._may_begin = thought.begins == "marked"
        self._num_left = max_tokens
        self._num_waited = 0
        self._forced: deque[int] = deque()
        self._was_forced = False
        self._tail = thought.before
        self._num_kept = max(map(len, markers)) - 1
        self._close_if_spent(is_whole=True)

    @property
    def has_forced(self) -> bool:
        """Whether the next token is known without sampling."""
        return bool(self._forced)

    def next_forced(self) -> int:
        """The next token, which `push` takes like any other."""
        return self._forced[0]

    @property
    def num_free_tokens(self) -> int | None:
        """How many tokens can be drawn before one may be forced, at least 1; None for any number.

        Nothing is forced within them, whatever they are.
        """
        if self.is_inside:
            return max(1, self._num_left)
        # Below zero while the end of a split character is waited for.
        return max(0, self._num_left) + 1 if self._may_begin else None

    def push(self, token_id: int, text: str, *, is_whole: bool) -> None:
        """Take the output's next token.

        Args:
            token_id: Drawn or forced.
            text: What it added to the text, special tokens included as far as they are shown.
            is_whole: The text ends with a whole character.
        """
        if not (self.is_inside or self._may_begin or self._forced):
            return
        if self._forced:
            if token_id == self._forced[0]:
                self._forced.popleft()
            else:  # of an attempt that was told another limit
                self._forced.clear()
        elif self.is_inside:
            self._num_left -= 1
        self._read(text)
        if not self.is_inside:
            self._was_forced = False
        elif self._was_forced and not self._forced:
            # The marker is not in the text, though its tokens are: it would be written forever.
            self.is_inside = self._may_begin = False
        else:
            self._close_if_spent(is_whole=is_whole)

    def _close_if_spent(self, *, is_whole: bool) -> None:
        if not self.is_inside or self._num_left > 0 or self._forced:
            return
        self._num_waited += 1
        if is_whole or self._num_waited > _MAX_WAIT_TOKENS:
            is_last = len(self._closings) == 1
            self._forced.extend(self._closings[0] if is_last else self._closings.pop(0))
            self._was_forced = True
            self._num_waited = 0

    def _read(self, text: str) -> None:
        """Look for markers up to the end of the text."""
        self._tail += text
        while self._step():
            pass
        if self.is_inside or self._thought.reopens:
            self._tail = self._tail[max(0, len(self._tail) - self._num_kept) :]

    def _step(self) -> bool:
        """Take one marker; whether there may be another one behind it."""
        if self.is_inside:
            found = _first(self._tail, self._thought.ends)
            if found is None:
                return False
            self.is_inside, self._may_begin = False, self._thought.reopens
            marker = self._tail[found]
            # One that begins the next message may begin reasoning in it, too.
            is_shared = any(start.startswith(marker) for start in self._thought.starts)
            self._tail = self._tail[found.start if is_shared else found.stop :]
            return self._may_begin
        if not self._may_begin:
            return False
        reopens, starts = self._thought.reopens, self._thought.starts
        found = _first(self._tail, starts) if reopens else self._lead()
        if found is None:
            return False
        self.is_inside, self._may_begin = True, False
        self._tail = self._tail[found.stop :]
        return True

    def _lead(self) -> slice | None:
        """Where a marker is that comes first of all; with anything else none is waited for."""
        text = self._tail.lstrip()
        starts = self._thought.starts
        marker = max((one for one in starts if text.startswith(one)), key=len, default=None)
        if marker is not None:
            start = len(self._tail) - len(text)
            return slice(start, start + len(marker))
        if not any(one.startswith(text) for one in starts):
            self._may_begin = False
            self._tail = ""
        elif not text:
            self._tail = ""
        return None


def _first(text: str, markers: Sequence[str]) -> slice | None:
    """Where the first of some markers is, of several that begin together the longest."""
    found = [(start, -len(one)) for one in markers if (start := text.find(one)) >= 0]
    if not found:
        return None
    start, length = min(found)
    return slice(start, start - length)

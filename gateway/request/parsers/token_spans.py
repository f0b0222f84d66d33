"""Which tokens made which piece of a parsed text: their log probabilities follow the content."""

from collections import deque
from collections.abc import Sequence
from itertools import repeat

from protocol.wire.messages import TokenLogprobs


class TokenSpans:
    """The tokens of one choice that were not handed out yet, in order.

    A token belongs to the first piece of content that holds a character of it. One without
    characters (the end of a text, half an emoji) belongs where the next character does, or, after
    the last one, to the piece before.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, int, TokenLogprobs]] = deque()
        self._num_characters = 0
        self._is_content = True

    def add(
        self, num_characters: int, token_ends: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> None:
        """More tokens.

        Args:
            num_characters: Of the whole text so far, for an engine that tells no `token_ends`.
            token_ends: For each token, the characters of the whole text with it.
            logprobs: One for each token.
        """
        for end, logprob in zip(token_ends or repeat(num_characters), logprobs, strict=False):
            self._pending.append((self._num_characters, end, logprob))
            self._num_characters = end

    def take(self, start: int, end: int) -> tuple[TokenLogprobs, ...]:
        """The tokens of the content at `start:end` of the whole text; earlier ones are dropped."""
        self._is_content = True
        pending = self._pending
        while pending and max(pending[0][1], pending[0][0] + 1) <= start:
            pending.popleft()
        taken: list[TokenLogprobs] = []
        while pending and pending[0][0] < end:
            taken.append(pending.popleft()[2])
        return tuple(taken)

    def leave_content(self) -> None:
        """Something else than content came."""
        self._is_content = False

    def take_rest(self) -> tuple[TokenLogprobs, ...]:
        """No more text: what is left, if the text ended as content."""
        rest = tuple(logprob for _, _, logprob in self._pending) if self._is_content else ()
        self._pending.clear()
        return rest

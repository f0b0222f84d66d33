"""Drafts the next tokens of a choice by what followed the same few tokens before (prompt lookup).

The draft goes on where the longest of the last `NGRAM_SIZES` tokens stood most recently (Saxena,
"Prompt Lookup Decoding", 2023). A draft that nobody computes costs nothing but the look-up, so each
token of an output is held against it. How many draft tokens in a row were right, and how often
another one was after so many, says what a draft is worth before any is computed.
"""

from collections.abc import Sequence
from typing import Final

NGRAM_SIZES: Final = (4, 3, 2)
"""How many of the last tokens are looked up, the most telling first."""
WINDOW_TOKENS: Final = 4096
"""Tokens that are surely remembered; at most twice as many are."""

_MIN_RATE_WEIGHT: Final = 0.1
"""Of the newest draft token in the running share of right ones, after the first few."""
_FIRST_RATE: Final = 0.3
_LONG_STREAK: Final = 4
"""Right draft tokens in a row, from which on all streaks count alike."""
_MIN_CHANCE: Final = 0.05
"""A token of a draft that is less likely to be right isn't worth its row."""


class NgramIndex:
    """The tokens of one sequence and, for their n-grams, where each ended last.

    A token costs the same however many came before it. Memory is bounded: n-grams are kept in two
    generations of `window` tokens each, of which the older is dropped when the younger is full.

    Args:
        window: Tokens of a generation.
    """

    def __init__(self, window: int = WINDOW_TOKENS) -> None:
        self._window = window
        self._tokens: list[int] = []
        # Position of the first of `_tokens`, and the one at which the young generation began.
        self._base = 0
        self._young_start = 0
        # By the hash of an n-gram, the position after it; a collision only costs a draft token.
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._source = 0
        self.match_length = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that were pushed."""
        return self._base + len(self._tokens)

    def push(self, token_id: int) -> None:
        """Take the next token; `match_length` is of the n-gram that ends with it, 0 without one."""
        tokens = self._tokens
        tokens.append(token_id)
        position = self._base + len(tokens)
        self.match_length = 0
        for size in NGRAM_SIZES:
            if len(tokens) < size:
                continue
            key = hash(tuple(tokens[-size:]))
            if not self.match_length:
                source = self._young.get(key) or self._old.get(key)
                if source is not None:
                    self._source, self.match_length = source, size
            self._young[key] = position
        if position - self._young_start == self._window:
            self._turn_over(position)

    def draft_token(self) -> int | None:
        """The token that followed the n-gram before."""
        return self._tokens[self._source - self._base] if self.match_length else None

    def draft(self, num_tokens: int) -> tuple[int, ...]:
        """The next tokens if the sequence goes on as it did before; none without a match."""
        if not self.match_length:
            return ()
        first = self._source - self._base
        draft = self._tokens[first : first + num_tokens]
        # What repeats without end is copied from the copy, as in LZ77.
        period = len(self._tokens) - first
        while len(draft) < num_tokens:
            draft.append(draft[len(draft) - period])
        return tuple(draft)

    def _turn_over(self, position: int) -> None:
        num_forgotten = self._young_start - self._base
        self._old, self._young = self._young, {}
        # The match that was just found may lie in what is forgotten now.
        if self._source < self._young_start:
            self.match_length = 0
        del self._tokens[:num_forgotten]
        self._base, self._young_start = self._young_start, position


class HitRate:
    """The running share of right draft tokens; the first ones weigh more."""

    def __init__(self) -> None:
        self.share = _FIRST_RATE
        self._num_judged = 0

    def judge(self, is_right: bool) -> None:
        """One more draft token was right or wrong."""
        weight = max(_MIN_RATE_WEIGHT, 1 / (2 + self._num_judged))
        self.share += weight * (is_right - self.share)
        self._num_judged += 1


class ChoiceDrafts:
    """What one choice said so far, and how well its drafts did.

    Args:
        num_skipped: Tokens of its beginning that it never looks at.

    Attributes:
        num_read: Tokens taken in, the skipped ones included.
    """

    def __init__(self, num_skipped: int = 0) -> None:
        self._index = NgramIndex()
        # By the number of right draft tokens just before.
        self._rates = tuple(HitRate() for _ in range(_LONG_STREAK + 1))
        self._streak = 0
        self.num_read = num_skipped

    def read(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        """Take in the next tokens; those at or beyond `num_prompt_tokens` were sampled."""
        for position, token_id in enumerate(token_ids, start=self.num_read):
            if position >= num_prompt_tokens:
                self._judge(token_id)
            self._index.push(token_id)
        self.num_read += len(token_ids)

    def chances(self, num_tokens: int) -> list[float]:
        """For each token of a draft, the estimated chance that it and all before it are right.

        Ends where a token would hardly be right. What begins to repeat gets a short draft at first,
        because one right token may be luck.
        """
        chances: list[float] = []
        if self._index.match_length:
            chance = 1.0
            for streak in range(self._streak, self._streak + min(num_tokens, 1 + 2 * self._streak)):
                chance *= self._rates[min(streak, _LONG_STREAK)].share
                if chance < _MIN_CHANCE:
                    break
                chances.append(chance)
        return chances

    def draft(self, num_tokens: int) -> tuple[int, ...]:
        """The next tokens as drafted; none without a match."""
        return self._index.draft(num_tokens)

    def _judge(self, token_id: int) -> None:
        drafted = self._index.draft_token()
        if drafted is not None:
            self._rates[min(self._streak, _LONG_STREAK)].judge(drafted == token_id)
        self._streak = self._streak + 1 if drafted == token_id else 0

"""Counts the tokens that lie in reasoning, from the offsets at which tokens end."""

from bisect import bisect_right
from collections.abc import Iterable


class ReasoningTokenCounter:
    """Counts tokens by the region that their last character lies in; markers belong to it.

    Attributes:
        num_reasoning_tokens: Those counted so far.
        is_reasoning: Whether the current region is reasoning.
    """

    def __init__(self) -> None:
        self.num_reasoning_tokens = 0
        self.is_reasoning = False
        self._pending: list[int] = []

    def add(self, token_ends: Iterable[int]) -> None:
        """Notes where further tokens end, as offsets in the whole text, ascending."""
        self._pending.extend(token_ends)

    def settle(self, offset: int) -> None:
        """The current region is certain to last up to this offset."""
        if self._pending:
            num_settled = bisect_right(self._pending, offset)
            self.num_reasoning_tokens += self.is_reasoning * num_settled
            del self._pending[:num_settled]

    def switch(self, offset: int, *, is_reasoning: bool) -> None:
        """Another region begins at this offset."""
        self.settle(offset)
        self.is_reasoning = is_reasoning

    def finish(self) -> None:
        """No more text: tokens that ended beyond it belong to the last region."""
        self.num_reasoning_tokens += self.is_reasoning * len(self._pending)
        self._pending.clear()

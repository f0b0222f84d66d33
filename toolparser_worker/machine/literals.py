"""Finds marker texts in a stream and tells which tail could still grow into one."""

import re
from functools import lru_cache


class LiteralMatcher:
    """Finds the leftmost of some literal texts, the longest where several begin at one place.

    Args:
        literals: The texts to look for, none of them empty; with none, all text is plain.

    Attributes:
        max_chars: The length of the longest.
        first_chars: The characters that they begin with.
    """

    def __init__(self, literals: tuple[str, ...]) -> None:
        by_length = sorted(set(literals), key=len, reverse=True)
        prefixes = {literal[:size] for literal in by_length for size in range(1, len(literal))}
        self.max_chars = len(by_length[0]) if by_length else 0
        self.first_chars = "".join(sorted({literal[0] for literal in by_length}))
        self._find = re.compile("|".join(map(re.escape, by_length))).search if by_length else None
        self._find_tail = (
            re.compile(
                f"(?:{'|'.join(map(re.escape, sorted(prefixes, key=len, reverse=True)))})\\Z"
            ).search
            if prefixes
            else None
        )

    def find(self, text: str, position: int, *, final: bool) -> tuple[int, int]:
        """Looks for a literal in `text[position:]`.

        Returns:
            `(start, end)`. `text[position:start]` is plain for certain. `start < end`: a literal
            stands at `text[start:end]`. `start == end`: there is none, and `text[start:]` could
            still grow into one; it is empty when `final`.
        """
        if self._find is None:
            return len(text), len(text)
        found = self._find(text, position)
        if not final and self._find_tail is not None:
            # No more than a literal's length can be undecided, however long the text is.
            tail = self._find_tail(text, max(position, len(text) - self.max_chars + 1))
            # A tail at the same place as a literal could grow into a longer one.
            if tail is not None and (found is None or tail.start() <= found.start()):
                return tail.start(), tail.start()
        if found is None:
            return len(text), len(text)
        return found.start(), found.end()


@lru_cache(maxsize=1024)
def literal_matcher(literals: tuple[str, ...]) -> LiteralMatcher:
    """The matcher of these literals, compiled once in the process."""
    return LiteralMatcher(literals)

"""The tokens of a model that stand outside of ordinary text."""

import re
from dataclasses import dataclass

Piece = str | int
"""A stretch of ordinary text, or the id of a special token."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that stand outside of ordinary text, by their text.

    Attributes:
        ids: Every token that no text spells, such as `<|im_start|>`.
        eos_token_ids: Those that end an output.
    """

    ids: dict[str, int]
    eos_token_ids: frozenset[int]

    def split(self, text: str) -> tuple[Piece, ...]:
        """A text as special tokens and the ordinary text between them, longest token first."""
        if not self.ids:
            return (text,) if text else ()
        longest_first = sorted(self.ids, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        return tuple(self.ids.get(piece, piece) for piece in pieces if piece)

    def ranges(self, without: frozenset[int] = frozenset()) -> str:
        """The ids that don't end an output, as Lark writes a set of tokens; empty for none."""
        ids = sorted(set(self.ids.values()) - self.eos_token_ids - without)
        return f"<[{','.join(map(str, ids))}]>" if ids else ""

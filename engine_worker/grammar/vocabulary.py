"""A model's tokens as llguidance sees them: bytes, special tokens, ends of sequence."""

import re
from dataclasses import dataclass
from typing import Final

from llguidance import LLTokenizer

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.text.tokenizer import Tokenizer

Piece = str | int
"""A stretch of ordinary text, or the id of a special token."""

_NO_TOKENIZER: Final = (
    "This model's tokenizer is of a kind whose tokens have no fixed bytes, so its output can't be"
    " constrained."
)


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


class GrammarVocabulary:
    """The tokenizer that matchers are made with, for one model.

    Args:
        tokenizer: The model's.
        vocab_size: Token ids at or above it can't be drawn.

    Attributes:
        num_tokens: Bits of a matcher's mask; at least `vocab_size`.
        special: Tokens that no text spells.

    Raises:
        UnsupportedGrammarError: The tokenizer has no table of bytes.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        size = max(vocab_size, tokenizer.num_tokens)
        eos_token_ids = sorted(tokenizer.eos_token_ids)
        if not eos_token_ids:
            # A grammar needs an end; this id stands for it and is never drawn.
            eos_token_ids = [size]
        self.num_tokens = max(size, eos_token_ids[-1] + 1)
        try:
            self.ll_tokenizer = LLTokenizer(
                tokenizer.serialized(), n_vocab=self.num_tokens, eos_token=eos_token_ids
            )
        except ValueError as error:
            raise UnsupportedGrammarError(_NO_TOKENIZER) from error
        self.special = SpecialTokens(
            ids={
                text: token_id
                for text, token_id in tokenizer.added_token_ids().items()
                if self.ll_tokenizer.is_special_token(token_id)
            },
            eos_token_ids=frozenset(eos_token_ids),
        )
        self._texts = {token_id: text for text, token_id in self.special.ids.items()}

    def spelling(self, token_id: int) -> list[int]:
        """Ordinary tokens with the text of a special one; none for a token that is ordinary."""
        text = self._texts.get(token_id)
        return [] if text is None else self.ll_tokenizer.greedy_tokenize(text)

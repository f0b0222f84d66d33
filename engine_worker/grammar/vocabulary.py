"""A model's tokens as llguidance sees them: bytes, special tokens, ends of sequence."""

from typing import Final

from llguidance import LLTokenizer

from engine_worker.errors import UnsupportedGrammarError
from engine_worker.grammar.special_tokens import SpecialTokens
from engine_worker.text.tokenizer import Tokenizer

_NO_TOKENIZER: Final = (
    "This model's tokenizer is of a kind whose tokens have no fixed bytes, so its output can't be"
    " constrained."
)


class GrammarVocabulary:
    """The tokenizer that matchers are made with, for one model.

    Args:
        tokenizer: The model's.
        vocab_size: Token ids at or above it can't be drawn.

    Attributes:
        serialized: What `ll_tokenizer` was made from, besides `num_tokens` and the ends.
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
        self.serialized = tokenizer.serialized()
        try:
            self.ll_tokenizer = LLTokenizer(
                self.serialized, n_vocab=self.num_tokens, eos_token=eos_token_ids
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

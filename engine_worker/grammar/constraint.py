"""Follows one output through its grammar: what may come next, what must, and when it is over."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask

from engine_worker.core.choice.token_mask import MaskWords
from engine_worker.grammar.trial import one_line
from engine_worker.grammar.vocabulary import GrammarVocabulary

_WORD_BITS: Final = 32


class Constraint:
    """The state of one output; every method is quick, and none raises for what a model draws.

    After each token that was drawn, the tokens that the grammar then forces are known at once:
    they are to be appended without sampling (`take_forced`). The same tokens replayed give the
    same state, so an output goes on elsewhere exactly as it would have here.

    Args:
        matcher: At the beginning of the text, used by nobody else.
        vocabulary: That the matcher was made with.
        jumps: Whether forced tokens are appended without sampling.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: GrammarVocabulary, *, jumps: bool) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._jumps = jumps
        self._forced: deque[int] = deque()
        self._has_ended = False
        self._find_forced()

    @property
    def is_complete(self) -> bool:
        """Whether the text is a whole sentence that nothing may follow."""
        return not self._forced and not self.failure and self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """Whether the text is a whole sentence, which may go on or not."""
        return not self._forced and not self.failure and self._matcher.is_accepting()

    @property
    def failure(self) -> str:
        """Why it can't go on, in one line; empty while it can."""
        return one_line(self._matcher.get_error()) if self._matcher.is_error() else ""

    @property
    def has_forced(self) -> bool:
        """Whether the next token is known without sampling."""
        return bool(self._forced)

    def next_forced(self) -> int:
        """The next token, which the grammar forces; `push` takes it like any other."""
        return self._forced[0]

    def push(self, token_id: int) -> None:
        """Take the output's next token, drawn or forced."""
        if self._has_ended or self.failure:
            return
        if self._forced:
            if token_id == self._forced[0]:
                self._forced.popleft()
                return
            # The output of an attempt that did not jump: go back to where they part.
            self._matcher.rollback(len(self._forced))
            self._forced.clear()
        if token_id in self._vocabulary.special.eos_token_ids and self._matcher.is_accepting():
            self._has_ended = True
            return
        self._matcher.consume_token(token_id)
        self._find_forced()

    def push_all(self, token_ids: Sequence[int]) -> None:
        """Take what an earlier attempt generated."""
        for token_id in token_ids:
            self.push(token_id)

    def mask(self) -> MaskWords:
        """The tokens that may come next: [ceil(V / 32)] uint32, bit `i % 32` of word `i // 32`.

        All zero when nothing may: `is_accepting` and `failure` then say why.
        """
        num_words = -(-self._vocabulary.num_tokens // _WORD_BITS)
        bits = np.zeros((1, num_words), np.int32)
        if not self._matcher.is_error():
            fill_next_token_bitmask(self._matcher, bits)
        if self.failure:
            bits[:] = 0
        return self._within_vocabulary(bits[0].view(np.uint32))

    def _find_forced(self) -> None:
        if not self._jumps or self.failure or self._matcher.is_stopped():
            return
        forced = self._matcher.compute_ff_tokens()
        unknown = next(
            (i for i, one in enumerate(forced) if one >= self._vocabulary.vocab_size), len(forced)
        )
        forced = forced[:unknown]
        if forced:
            self._matcher.consume_tokens(forced)
            self._forced.extend(forced)

    def _within_vocabulary(self, words: MaskWords) -> MaskWords:
        """The mask without ids that the model doesn't have."""
        vocab_size = self._vocabulary.vocab_size
        words = words[: -(-vocab_size // _WORD_BITS)]
        if vocab_size % _WORD_BITS:
            words[-1] &= np.uint32((1 << vocab_size % _WORD_BITS) - 1)
        return words

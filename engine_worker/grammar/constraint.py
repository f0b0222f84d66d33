"""Follows one output through its grammar: what may come next, what must, and when it is over."""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask

from engine_worker.core.choice.token_mask import MaskWords
from engine_worker.grammar.messages import one_line
from engine_worker.grammar.vocabulary import GrammarVocabulary

_WORD_BITS: Final = 32
MAX_TAKEN: Final = 256
"""Forced tokens that the matcher takes at a time. It takes about 7 µs for each and lets no other
thread run meanwhile, and a grammar may force tens of thousands."""


class Constraint:
    """The state of one output; every method is quick, and none raises for what a model draws.

    After each token that was drawn, the tokens that the grammar then forces are known at once:
    they are to be appended without sampling (`next_forced`). The same tokens replayed give the
    same state, so an output goes on elsewhere exactly as it would have here.

    A state that has failed stays failed: it allows and forces nothing, and `failure` says why. The
    output must end then, because its tokens are no longer looked at.

    Args:
        matcher: At the beginning of the text, used by nobody else.
        vocabulary: That the matcher was made with.
        jumps: Whether forced tokens are appended without sampling.
        unenforced: Keywords of the grammar's schemas that are left to the model.

    Attributes:
        has_broken_mask: `mask` has raised, by a fault of ours; whoever called it says so here.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: GrammarVocabulary,
        *,
        jumps: bool,
        unenforced: tuple[str, ...] = (),
    ) -> None:
        self.unenforced = unenforced
        self.has_broken_mask = False
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._jumps = jumps
        # Forced tokens that the matcher has taken, and those behind them that it has yet to take.
        self._forced: deque[int] = deque()
        self._untaken: deque[int] = deque()
        self._has_ended = False
        self._failure = ""
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
        if not self._failure and self._matcher.is_error():
            self._fail(one_line(self._matcher.get_error()) or "it failed.")
        return self._failure

    @property
    def is_sentence(self) -> bool:
        """Whether the output may end here by itself."""
        return not self.failure and (self._has_ended or self.is_accepting)

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
                if self._untaken and not self._forced:
                    self._take_forced()
                return
            # The output of an attempt that did not jump: go back to where they part.
            if not self._matcher.rollback(len(self._forced)):
                self._fail("it could not be taken back to where an earlier attempt stood.")
                return
            self._forced.clear()
            self._untaken.clear()
        if token_id in self._vocabulary.special.eos_token_ids and self._matcher.is_accepting():
            self._has_ended = True
            return
        if not self._matcher.consume_token(token_id) and not self.failure:
            self._fail("the output has a token that it doesn't allow.")
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
        words = bits[0].view(np.uint32)
        self._spell_special(words)
        return self._within_vocabulary(words)

    def _spell_special(self, words: MaskWords) -> None:
        """Put an ordinary token where the only one allowed is special and can't be taken.

        A text with one way to go on is read by the tokenizer, which sees special tokens in it.
        """
        (places,) = np.nonzero(words)
        if len(places) != 1:
            return
        word = int(words[places[0]])
        if word & (word - 1):
            return
        token_id = int(places[0]) * _WORD_BITS + word.bit_length() - 1
        spelling = self._vocabulary.spelling(token_id)
        if spelling and not self._matcher.validate_tokens([token_id]):
            words[:] = 0
            if self._matcher.validate_tokens(spelling[:1]):
                words[spelling[0] // _WORD_BITS] = np.uint32(1 << spelling[0] % _WORD_BITS)

    def _find_forced(self) -> None:
        if not self._jumps or self.failure or self._matcher.is_stopped():
            return
        forced = self._consumable(self._matcher.compute_ff_tokens())
        if not forced or self.failure:
            return
        self._untaken.extend(forced)
        self._take_forced()

    def _take_forced(self) -> None:
        """Have the matcher take the next of the forced tokens."""
        num_taken = min(len(self._untaken), MAX_TAKEN)
        forced = [self._untaken.popleft() for _ in range(num_taken)]
        if self._matcher.consume_tokens(forced):
            self._forced.extend(forced)
        elif not self.failure:
            self._fail("the tokens that it forces can't be taken.")

    def _consumable(self, forced: list[int]) -> list[int]:
        """The forced tokens that can be taken; what is left over comes through the mask.

        The tokenizer reads a special token where the grammar means the text of it, which only
        ordinary tokens spell.
        """
        num_valid = self._matcher.validate_tokens(forced)
        while num_valid < len(forced):
            spelling = self._vocabulary.spelling(forced[num_valid])
            spelt = [*forced[:num_valid], *spelling, *forced[num_valid + 1 :]]
            num_spelt = self._matcher.validate_tokens(spelt) if spelling else 0
            if num_spelt <= num_valid:
                forced = forced[:num_valid]
                break
            forced, num_valid = spelt, num_spelt
        vocab_size = self._vocabulary.vocab_size
        unknown = (i for i, token_id in enumerate(forced) if token_id >= vocab_size)
        return forced[: next(unknown, len(forced))]

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._forced.clear()
        self._untaken.clear()

    def _within_vocabulary(self, words: MaskWords) -> MaskWords:
        """The mask without ids that the model doesn't have."""
        vocab_size = self._vocabulary.vocab_size
        words = words[: -(-vocab_size // _WORD_BITS)]
        if vocab_size % _WORD_BITS:
            words[-1] &= np.uint32((1 << vocab_size % _WORD_BITS) - 1)
        return words

"""One choice with its output: tokens, text, and what no gateway was told yet."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from engine_worker.core.choice.batch import MAX_ROW_STOP_TOKEN_IDS, TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.core.choice.token_mask import allow_only
from engine_worker.grammar.compiler import may_jump
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.output_text import OutputText
from engine_worker.text.stopping import Stop, StopStrings
from engine_worker.text.thoughts import ThoughtLimit
from engine_worker.text.tokenizer import Tokenizer
from protocol.wire.messages import Generate

_TOKENS_A_TURN = 64
"""Read again before other threads get the interpreter: about half a millisecond."""
MAX_UNENFORCED: Final = 32
"""Keywords that gateways are told of; a schema may have thousands."""


@dataclass(slots=True)
class ChoiceOutput:
    """A choice together with the text side of its output.

    Attributes:
        constraint: The grammar that the output follows, if any.
        stop: Why the output ends, once it does.
        untold: Tokens that no delta held yet, each with the length of the text after it.
        untold_scores: Of the tokens that were sampled, in their order, if they are wanted.
        num_resumed_tokens: Of the output, what an earlier attempt generated.
        thought: Ends its reasoning, if that has a limit.
        draws_forced: Tokens that end reasoning go through sampling, as the only ones allowed,
            because their log probabilities are wanted.
        vocab_size: Of the model.
        has_told_cached: Whether a delta said what of the prompt needn't be computed.
        plain_texts: What is told of a plain token (see `Choice.plain_until`); "" for one that isn't
            told as it is.
    """

    choice: Choice
    text: OutputText
    want_token_ids: bool
    constraint: Constraint | None = None
    stop: Stop | None = None
    untold: list[tuple[int, int]] = field(default_factory=list)
    untold_scores: list[TokenScores] = field(default_factory=list)
    num_resumed_tokens: int = 0
    thought: ThoughtLimit | None = None
    draws_forced: bool = False
    vocab_size: int = 0
    has_told_cached: bool = False
    plain_texts: Mapping[int, str] = field(default_factory=dict)

    @property
    def grammar_failure(self) -> str:
        """Why the output can't follow its grammar any further; empty while it can."""
        return "" if self.constraint is None else self.constraint.failure

    @property
    def is_sentence(self) -> bool:
        """Whether the output may end here by itself; without a grammar it may end anywhere."""
        return self.constraint is None or self.constraint.is_sentence

    def take_unenforced(self) -> tuple[str, ...]:
        """Keywords of the grammar's schemas that are left to the model; once."""
        if self.constraint is None:
            return ()
        unenforced, self.constraint.unenforced = self.constraint.unenforced, ()
        return unenforced[:MAX_UNENFORCED]

    def take_cached_tokens(self) -> int:
        """What of the prompt needn't be computed; once, and not before that is known."""
        if self.has_told_cached or self.choice.num_cached_tokens is None:
            return 0
        self.has_told_cached = True
        return self.choice.num_cached_tokens

    def append(self, token_id: int) -> None:
        """Take the output's next token; `stop` is set when the output ends with it."""
        self.choice.output_token_ids.append(token_id)
        is_complete = False
        if self.constraint is not None:
            self.constraint.push(token_id)
            is_complete = self.constraint.is_complete
        self.stop = self.text.push(self.choice, is_complete=is_complete)
        self.untold.append((token_id, self.text.num_characters))
        if self.thought is not None:
            self.thought.push(token_id, self.text.last_piece, is_whole=self.text.is_whole)
            self.follow_thought()

    def settle(self) -> None:
        """Say until when the next tokens are plain, now that all of the output is told."""
        choice, texts = self.choice, None
        sampling = choice.sampling
        is_free = (
            self.constraint is None
            and self.thought is None
            and self.has_told_cached
            and choice.allowed_tokens is None
            and not sampling.logit_bias
            and sampling.num_logprobs is None
            and sampling.num_prompt_logprobs is None
            and len(choice.ending_token_ids) <= MAX_ROW_STOP_TOKEN_IDS
        )
        if is_free:
            texts = self.text.texts
        choice.plain_until = 0 if texts is None else choice.max_output_tokens - 1
        self.plain_texts = {} if texts is None else texts

    def plain_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """The text of the next tokens, and how long the whole is after each of them.

        None where one of them isn't plain, or ends the output.
        """
        choice = self.choice
        if len(choice.output_token_ids) + len(token_ids) > choice.plain_until:
            return None
        ending, texts, end = choice.ending_token_ids, self.plain_texts, self.text.num_characters
        whole = ""
        ends: tuple[int, ...] = ()
        for token_id in token_ids:
            # Where nothing was sampled, the id is below 0.
            if token_id < 0 or token_id in ending or not (text := texts[token_id]):
                return None
            whole += text
            ends += (end + len(whole),)
        return whole, ends

    def follow_thought(self) -> None:
        """Tell the choice what the limit of its reasoning leaves of the next tokens."""
        thought, choice = self.thought, self.choice
        if thought is None:
            return
        choice.num_free_tokens = thought.num_free_tokens
        # Outside of reasoning something is forced only if it begins again, which is rare.
        choice.drops_rest = not thought.is_inside and not self.draws_forced
        choice.forced_mask = None
        if self.draws_forced and thought.has_forced:
            choice.forced_mask = allow_only([thought.next_forced()], self.vocab_size)

    @property
    def is_thought_over(self) -> bool:
        """Whether what ends its reasoning comes next, and nothing that was drawn."""
        return self.thought is not None and self.thought.has_forced

    def append_forced(self) -> bool:
        """Take the tokens that are known without sampling, within the lease; whether any were."""
        num_before = len(self.untold)
        while self.stop is None and not self.choice.is_paused and not self.grammar_failure:
            token_id = self._next_forced()
            if token_id is None:
                break
            self.append(token_id)
        return len(self.untold) > num_before

    def _next_forced(self) -> int | None:
        """What the grammar forces, then what ends the reasoning."""
        if self.constraint is not None and self.constraint.has_forced:
            return self.constraint.next_forced()
        if self.thought is not None and self.thought.has_forced and not self.draws_forced:
            return self.thought.next_forced()
        return None


def resumed_output(
    choice: Choice,
    command: Generate,
    constraint: Constraint | None,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> ChoiceOutput:
    """A choice with its text side, brought to where an earlier attempt left it.

    Raises:
        InvalidRequestError: `thought` is wrong.
    """
    sampling = command.sampling
    text = OutputText(
        tokenizer.detokenizer(
            choice.prompt_token_ids,
            skip_special_tokens=sampling.skip_special_tokens,
            keep_special_tokens=command.keep_special_tokens,
        ),
        StopStrings(sampling.stop, include=sampling.include_stop_str_in_output),
        num_sent_characters=command.num_sent_characters,
        include_stop_text=sampling.include_stop_str_in_output,
    )
    output = ChoiceOutput(choice, text, command.want_token_ids, constraint)
    if command.thought is not None:
        output.thought = ThoughtLimit(
            command.thought,
            command.max_thought_tokens,
            partial(tokenizer.encode, add_special_tokens=False),
        )
        output.draws_forced = not may_jump(sampling)
        output.vocab_size = vocab_size
        output.follow_thought()
    for num_read, token_id in enumerate(command.output_token_ids, start=1):
        output.append(token_id)
        if output.stop is not None or output.grammar_failure:
            break
        if num_read % _TOKENS_A_TURN == 0:
            # A thread that computes keeps the interpreter for 5 ms, which would delay every step.
            time.sleep(0)
    output.untold.clear()
    output.num_resumed_tokens = choice.num_output_tokens
    return output

"""One choice with its output: tokens, text, and what no gateway was told yet."""

import time
from dataclasses import dataclass, field
from typing import Final

from engine_worker.core.choice.batch import TokenScores
from engine_worker.core.choice.choice import Choice
from engine_worker.grammar.constraint import Constraint
from engine_worker.text.output_text import OutputText
from engine_worker.text.stopping import Stop, StopStrings
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
        has_broken_mask: The grammar's mask could not be made, which allows no token.
    """

    choice: Choice
    text: OutputText
    want_token_ids: bool
    constraint: Constraint | None = None
    stop: Stop | None = None
    untold: list[tuple[int, int]] = field(default_factory=list)
    untold_scores: list[TokenScores] = field(default_factory=list)
    num_resumed_tokens: int = 0
    has_broken_mask: bool = False

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

    def append(self, token_id: int) -> None:
        """Take the output's next token; `stop` is set when the output ends with it."""
        self.choice.output_token_ids.append(token_id)
        is_complete = False
        if self.constraint is not None:
            self.constraint.push(token_id)
            is_complete = self.constraint.is_complete
        self.stop = self.text.push(self.choice, is_complete=is_complete)
        self.untold.append((token_id, self.text.num_characters))

    def append_forced(self) -> bool:
        """Take the tokens that the grammar forces, within the lease; whether there were any."""
        num_before = len(self.untold)
        while (
            self.constraint is not None
            and self.constraint.has_forced
            and self.stop is None
            and not self.choice.is_paused
        ):
            self.append(self.constraint.next_forced())
        return len(self.untold) > num_before


def resumed_output(
    choice: Choice, command: Generate, constraint: Constraint | None, tokenizer: Tokenizer
) -> ChoiceOutput:
    """A choice with its text side, brought to where an earlier attempt left it."""
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

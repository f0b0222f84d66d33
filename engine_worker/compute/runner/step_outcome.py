"""Collects what the calls of one step sampled and scored, row by row."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.full_sampler import FullSample
from engine_worker.compute.sampling.sampler import NAN_LOGITS, NOT_SAMPLED, WITHOUT_CHOICE
from engine_worker.core.choice.batch import StepResult, TokenScores


class StepOutcome:
    """The rows of one step; filled call by call.

    Args:
        num_rows: Of the step.
    """

    def __init__(self, num_rows: int) -> None:
        self._tokens = np.full(num_rows, NOT_SAMPLED, np.int32)
        self._logprobs: dict[int, TokenScores] = {}
        self._prompt_logprobs: dict[int, list[TokenScores]] = {}
        self._more: dict[int, list[int]] = {}

    def put_tokens(self, indices: Sequence[int], tokens: npt.NDArray[np.int32]) -> None:
        """What a step program sampled for some rows: [N, R], a row's tokens one below the other.

        Padding may follow the rows, and the tokens of each.
        """
        self._tokens[indices] = tokens[0, : len(indices)]
        if tokens.shape[0] == 1 or (tokens[1, : len(indices)] < 0).all():
            return
        for column, index in enumerate(indices):
            more = tokens[1:, column]
            num_more = int(np.argmax(more < 0)) if (more < 0).any() else len(more)
            if num_more:
                self._more[index] = more[:num_more].tolist()

    def put(self, index: int, sample: FullSample) -> None:
        """What the full sampler says of a row, or of one of its prompt's tokens.

        The tokens of a prompt come in their order.
        """
        if sample.is_target:
            if sample.scores is not None:
                self._prompt_logprobs.setdefault(index, []).append(sample.scores)
        elif sample.scores is not None:
            self._logprobs[index] = sample.scores
        # A row's NaN stays, whatever its other tokens are.
        if sample.token != NOT_SAMPLED and self._tokens[index] != NAN_LOGITS:
            self._tokens[index] = sample.token

    def result(self) -> StepResult:
        """The step's result."""
        tokens = self._tokens
        return StepResult(
            token_ids=np.maximum(tokens, NOT_SAMPLED),
            has_nan=tokens == NAN_LOGITS,
            nothing_allowed=frozenset(np.flatnonzero(tokens == WITHOUT_CHOICE).tolist()),
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
            more_token_ids=self._more,
        )

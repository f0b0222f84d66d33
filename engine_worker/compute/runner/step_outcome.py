"""Collects what the calls of one step sampled and scored, row by row."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.full_sampler import FullSample, FullSampler
from engine_worker.compute.runner.programs import ProgramOutput
from engine_worker.compute.sampling.sampler import NAN_LOGITS, NOT_SAMPLED, WITHOUT_CHOICE
from engine_worker.core.choice.batch import RowWork, StepResult, TokenScores


class StepOutcome:
    """The rows of one step; told call by call, read once all of them are dispatched.

    Args:
        num_rows: Of the step.
        expert_bytes: Of one expert, for each layer that has some.
    """

    def __init__(self, num_rows: int, expert_bytes: Sequence[int] = ()) -> None:
        self._bytes_of_experts = np.asarray(expert_bytes, np.int64)
        self._expert_bytes = 0
        self._tokens = np.full(num_rows, NOT_SAMPLED, np.int32)
        self._logprobs: dict[int, TokenScores] = {}
        self._prompt_logprobs: dict[int, list[TokenScores]] = {}
        self._more: dict[int, list[int]] = {}
        self._unread: list[Callable[[], None]] = []

    def put_output(
        self, indices: Sequence[int], output: ProgramOutput, columns: Sequence[int] | None = None
    ) -> None:
        """What a step program samples for some rows, and which experts it read.

        Args:
            indices: Of the rows.
            output: Of the program; padding may follow the tokens of each row.
            columns: Where each row's stand; the first ones when None.
        """
        self._unread.append(partial(self._read_tokens, indices, output.tokens, columns))
        self.put_experts(output)

    def put_experts(self, output: ProgramOutput) -> None:
        """Which experts a step program read, if it says so."""
        if output.experts_read is not None:
            self._unread.append(partial(self._read_experts, output.experts_read))

    def put_samples(
        self,
        indices: Sequence[int],
        sampler: FullSampler,
        outputs: jax.Array,
        rows: Sequence[RowWork],
        targets: Sequence[int | None],
    ) -> None:
        """What a full sampler says of some rows, or of tokens of their prompts.

        The tokens of a prompt come in their order, and a row comes here after `put_output`.

        Args:
            indices: Of the rows.
            sampler: Whose output it is.
            outputs: As `sampler` returned it.
            rows: As they were given to `sampler`.
            targets: Likewise.
        """
        self._unread.append(partial(self._read_samples, indices, sampler, outputs, rows, targets))

    def read(self) -> None:
        """Waits for all that was told, and reads it."""
        unread, self._unread = self._unread, []
        for read in unread:
            read()

    def token_ids(self) -> list[int]:
        """The first token of each row, after `read`; below 0 where there is none."""
        tokens: list[int] = self._tokens.tolist()
        return tokens

    def _read_tokens(
        self, indices: Sequence[int], tokens: jax.Array, columns: Sequence[int] | None
    ) -> None:
        on_host: npt.NDArray[np.int32] = np.asarray(tokens)
        own = on_host[:, : len(indices)] if columns is None else on_host[:, columns]
        self._tokens[indices] = own[0]
        if own.shape[0] == 1 or (own[1] < 0).all():
            return
        for column, index in enumerate(indices):
            more = own[1:, column]
            num_more = int(np.argmax(more < 0)) if (more < 0).any() else len(more)
            if num_more:
                self._more[index] = more[:num_more].tolist()

    def _read_experts(self, experts_read: jax.Array) -> None:
        self._expert_bytes += int(np.asarray(experts_read) @ self._bytes_of_experts)

    def _read_samples(
        self,
        indices: Sequence[int],
        sampler: FullSampler,
        outputs: jax.Array,
        rows: Sequence[RowWork],
        targets: Sequence[int | None],
    ) -> None:
        samples = sampler.read(np.asarray(outputs), rows, targets)
        for index, sample in zip(indices, samples, strict=True):
            self._put(index, sample)

    def _put(self, index: int, sample: FullSample) -> None:
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
        self.read()
        tokens = self._tokens
        return StepResult(
            token_ids=np.maximum(tokens, NOT_SAMPLED),
            has_nan=tokens == NAN_LOGITS,
            nothing_allowed=frozenset(np.flatnonzero(tokens == WITHOUT_CHOICE).tolist()),
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
            more_token_ids=self._more,
            expert_bytes=self._expert_bytes,
        )

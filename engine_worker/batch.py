"""What the scheduler asks of the model runner for one step, and what comes back; host data only.

This file is the border between the policy side (scheduler, request, block pool; no jax) and the
compute side (model runner, programs; jax).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

ProgressCallback = Callable[[float, str], None]
"""Called with a fraction (0 to 1) and a short text while weights load or programs compile."""


MAX_MASKED_TOKEN_IDS = 64
"""The most ids that `RowSampling.stop_token_ids_masked` holds."""


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row's token is chosen.

    Attributes:
        temperature: 0 is greedy.
        seed: With `choice`, the position of the new token and the token id, the key of the noise.
        choice: Index of the choice within its request.
        stop_token_ids_masked: Ids whose logits are -inf in this step (`min_tokens`).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    choice: int = 0
    stop_token_ids_masked: tuple[int, ...] = ()

    @property
    def uses_penalties(self) -> bool:
        """Whether the row needs token counts."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class RowWork:
    """The tokens of one request to compute in this step.

    Attributes:
        slot: Device row of the request, 0 ≤ slot < max_num_seqs, its own from admission to finish
            or preemption. The runner keeps token counts for penalties by slot.
        token_ids: Tokens to compute: one in decode, a chunk in prefill.
        start: Position of `token_ids[0]` (= num_computed_tokens).
        block_ids: KV blocks of the request, enough for position start + len(token_ids) - 1.
        sample: Whether a token is sampled after the last of `token_ids`. Its position is
            start + len(token_ids).
        sampling: How.
    """

    slot: int
    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    sample: bool
    sampling: RowSampling


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The rows of one step. Rows with one token and `sample` are decodes, the rest prefill."""

    rows: tuple[RowWork, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step sampled.

    Attributes:
        token_ids: [num_rows] int32, aligned with the batch's rows; -1 where nothing was sampled.
        has_nan: [num_rows] bool: the row's logits held NaN; its request must fail.
    """

    token_ids: npt.NDArray[np.int32]
    has_nan: npt.NDArray[np.bool_]


class ModelRunner(Protocol):
    """The compute side as the engine sees it. One thread calls it; calls block until done."""

    @property
    def num_blocks(self) -> int:
        """KV blocks that block ids may name, 0 ≤ block_id < num_blocks."""

    @property
    def block_size(self) -> int:
        """Tokens a KV block."""

    @property
    def max_num_seqs(self) -> int:
        """Slots; also the most rows of a step."""

    @property
    def max_num_batched_tokens(self) -> int:
        """The most tokens of a step."""

    @property
    def prefill_chunk_size(self) -> int:
        """The most tokens of one row; in deterministic mode also the boundary of chunks."""

    @property
    def num_compiles(self) -> int:
        """Programs compiled so far; constant after warm-up."""

    def assign_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        """A request takes a slot: reset its token counts for penalties to these tokens."""

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step: write KV, sample; block until the tokens are on the host."""

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compile (or load from the persistent cache) every program that `run` can need."""

    def reset(self) -> None:
        """Start over with an empty KV cache after a step that raised; every slot is free."""

"""What the scheduler asks of the model runner for one step, and what comes back; host data only.

This file is the border between the policy side (scheduler, choice, block pool; no jax) and the
compute side (model runner, programs; jax).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from engine_worker.core.choice.cache_group import CacheGroup
from engine_worker.core.choice.score_pack import ScoreLimits, ScorePack
from engine_worker.core.choice.token_mask import MaskWords

ProgressCallback = Callable[[float, str], None]
"""Called with a fraction (0 to 1) and a short text while weights load or programs compile."""

MAX_ROW_STOP_TOKEN_IDS = 8
"""The most ids of `RowWork.stop_token_ids`."""

MaskSource = Callable[[], MaskWords]
"""Gives a mask once it is made; called when the forward pass of its step is under way."""


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row's token is chosen.

    Attributes:
        temperature: 0 is greedy.
        seed: With `choice`, the position of the new token and the token id, the key of the noise.
        choice: Index of the choice within its request.
        logit_bias: (token id, number added to its logit), at most `MAX_LOGIT_BIASES` of the wire,
            each id once.
        num_logprobs: How many likely tokens are reported beside the sampled one, at most
            `MAX_LOGPROBS` of the wire; None reports nothing.
        num_prompt_logprobs: The same for `RowWork.scored_token_ids`.
        logprob_token_ids: Tokens reported beside each sampled one, with `num_logprobs`; at most
            `MAX_LOGPROB_TOKEN_IDS` of the wire.
        uses_penalties: Whether the row needs token counts.
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
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    uses_penalties: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        uses_penalties = (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )
        object.__setattr__(self, "uses_penalties", uses_penalties)


class RowWork(msgspec.Struct, frozen=True):
    """The tokens of one choice to compute in this step.

    A struct, which takes a tenth of the time of a frozen dataclass to make: each row of each step
    has its own.

    Attributes:
        slot: Device row of the choice, 0 ≤ slot < max_num_seqs, its own from admission to finish
            or preemption. The runner keeps token counts for penalties by slot.
        token_ids: Tokens to compute: one in decode, a chunk in prefill.
        start: Position of `token_ids[0]` (= num_computed_tokens).
        block_ids: KV blocks of the choice in the first cache group, enough for position
            start + len(token_ids) - 1. A list that comes again may have grown meanwhile, and more
            of its first entries may be `NO_BLOCK`; it is otherwise as it was.
        sample: Whether a token is sampled after the last of `token_ids`. Its position is
            start + len(token_ids).
        sampling: How.
        allowed_mask: The tokens that may be sampled; None allows all.
        pending_mask: A second mask that is still being made; both must allow a token.
        scored_token_ids: The prompt's tokens that follow the first of `token_ids`, one each,
            whose log probabilities are wanted.
        max_new_tokens: In decode, how many tokens to sample one after the other; `block_ids`
            hold all of them but the last. More than 1 only without the full sampler.
        stop_token_ids: A row that samples one of these samples no further; at most
            `MAX_ROW_STOP_TOKEN_IDS`.
        draft_token_ids: In decode, a draft of the tokens that follow. All are computed at once, and
            the draw after each counts as long as the draft up to it equals the draws before;
            `block_ids` hold them. Only without the full sampler, penalties and look-ahead.
        window_block_ids: As `block_ids`, in the second cache group; empty without one.
        is_plain: A decode that nothing masks or scores. From the plain row before that had this
            list of block ids it differs in nothing but its token, its position, `max_new_tokens`,
            `draft_token_ids` and further or freed blocks: the rest needn't be looked at again.
    """

    slot: int
    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    sample: bool
    sampling: RowSampling
    allowed_mask: MaskWords | None = None
    pending_mask: MaskSource | None = None
    scored_token_ids: Sequence[int] = ()
    max_new_tokens: int = 1
    stop_token_ids: tuple[int, ...] = ()
    draft_token_ids: tuple[int, ...] = ()
    window_block_ids: Sequence[int] = ()
    is_plain: bool = False

    @property
    def block_tables(self) -> tuple[Sequence[int], Sequence[int]]:
        """Of the first cache group, and of the second."""
        return self.block_ids, self.window_block_ids

    @property
    def is_decode(self) -> bool:
        """Whether one token is computed and another one sampled after it, and none is scored."""
        return self.sample and len(self.token_ids) == 1 and not self.scored_token_ids

    @property
    def needs_full_sampler(self) -> bool:
        """Whether it takes more than the step program itself can do."""
        return len(self.scored_token_ids) > 0 or (
            self.sample
            and (
                self.allowed_mask is not None
                or self.pending_mask is not None
                or bool(self.sampling.logit_bias)
                or self.sampling.num_logprobs is not None
            )
        )


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The rows of one step. Rows with one token and `sample` are decodes, the rest prefill.

    Attributes:
        rows: Decodes first.
        next_rows: Indices of the rows that are likely to decode one token further in the step after
            this one: a runner that `runs_ahead` may begin that for them. They sample one token, and
            their blocks hold one more.
    """

    rows: tuple[RowWork, ...]
    next_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the model thought of one token, before bias, masks, penalties and temperature.

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability.
        rank: 1 for the most likely token; tokens with equal logits share a rank.
        top: (token id, log probability) of the likeliest tokens, best first.
        wanted: The same of the row's `logprob_token_ids`, in their order.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]
    wanted: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step sampled.

    Attributes:
        token_ids: [num_rows] int32, aligned with the batch's rows; -1 where nothing was sampled.
        has_nan: [num_rows] bool: the row's logits held NaN or infinity; its choice must fail.
        nothing_allowed: Indices of rows whose masks allowed no token; their choices must fail.
        logprobs: Of the sampled token, by index of the row, for rows that want them.
        prompt_logprobs: Of `scored_token_ids`, likewise.
        more_token_ids: What a row with `max_new_tokens` or `draft_token_ids` sampled after its
            first token, by index of the row; it ends early at a stop id, after a wrong draft token,
            and before a position that gave no number.
        expert_bytes: Of matrices of experts that decodes read, those of each expert once a turn.
    """

    token_ids: npt.NDArray[np.int32]
    has_nan: npt.NDArray[np.bool_]
    nothing_allowed: frozenset[int] = frozenset()
    logprobs: Mapping[int, TokenScores] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, Sequence[TokenScores]] = field(default_factory=dict)
    more_token_ids: Mapping[int, Sequence[int]] = field(default_factory=dict)
    expert_bytes: int = 0


class ModelRunner(Protocol):
    """The compute side as the engine sees it. One thread calls it; calls block until done."""

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """One, or two where some layers see all tokens and others those of a window only."""

    @property
    def block_size(self) -> int:
        """Tokens a KV block."""

    @property
    def max_num_seqs(self) -> int:
        """Slots; also the most rows of a step."""

    @property
    def max_num_batched_tokens(self) -> int:
        """The most tokens of prompts in a step; each row that decodes comes beside them."""

    @property
    def prefill_chunk_size(self) -> int:
        """The most tokens of one row; in deterministic mode also the boundary of chunks."""

    @property
    def max_new_tokens(self) -> int:
        """The most `RowWork.max_new_tokens`; 1 where a step is always one token."""

    @property
    def decode_rows(self) -> tuple[int, ...]:
        """Rows of the programs that decode, rising: a step takes the smallest that fits.

        A draft token takes a row as well; with drafts a step has at most the last number.
        """

    @property
    def max_draft_tokens(self) -> int:
        """The most `RowWork.draft_token_ids`."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `StepBatch.next_rows` is of use."""

    @property
    def num_compiles(self) -> int:
        """Programs compiled so far; constant once the warm-up is over."""

    def assign_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        """A choice takes a slot: reset its token counts for penalties to these tokens."""

    def run(self, batch: StepBatch) -> StepResult:
        """Compute one step: write KV, sample; block until the tokens are on the host."""

    @property
    def score_limits(self) -> ScoreLimits:
        """What a pack for `score` may hold."""

    def num_scratch_blocks(self, num_stored: int, num_tokens: int) -> int:
        """How many blocks of each cache group a row of `score` borrows.

        Args:
            num_stored: Tokens before the row's.
            num_tokens: Of the row.
        """

    def score(
        self,
        pack: ScorePack,
        num_stored: int,
        slot: int,
        block_ids: Sequence[Sequence[int]],
        scratch_ids: Sequence[Sequence[Sequence[int]]],
    ) -> npt.NDArray[np.float32]:
        """The log probability of each of a pack's pairs after the tokens that some blocks hold.

        Args:
            pack: Within `score_limits`.
            num_stored: Tokens before the pack's, all of them computed.
            slot: Of the choice that computed them, and that has computed nothing since.
            block_ids: For each cache group the blocks that hold them; they are only read.
            scratch_ids: For each cache group and row the blocks that it borrows; what they hold
                afterwards is of no use to anybody.

        Returns:
            [num_pairs] float32; NaN where the model computed no number.
        """

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compile (or load from the persistent cache) what `run` needs for any work.

        Programs that are only faster may still be compiled when this returns; `run` never
        waits for them.
        """

    def reset(self) -> None:
        """Start over with an empty KV cache after a step that raised; every slot is free."""

    def release_memory(self, block_ids: Sequence[Sequence[int]]) -> int:
        """Give memory back that blocks take; what they hold is of no use to anybody.

        Args:
            block_ids: For each cache group.

        Returns:
            Bytes; 0 where the device keeps what it has.
        """

    def close(self) -> None:
        """Leave nothing running behind; `run` works on, with the programs that are there."""

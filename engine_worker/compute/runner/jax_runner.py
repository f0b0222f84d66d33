"""The model runner on jax: owns the device state and runs each step's rows through its programs."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import numpy as np
import numpy.typing as npt
from msgspec import structs

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.kv_layout import KvLayout
from engine_worker.compute.backends.kv_memory import state_rings
from engine_worker.compute.backends.xla.backend import XlaBackend
from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.runner.buckets import DECODE_ROWS, Bucket, Buckets, choose_buckets
from engine_worker.compute.runner.drafts import join_drafts, split_drafts
from engine_worker.compute.runner.limits import RowLimits, RunnerLimits
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.compute.runner.program_set import ProgramSet
from engine_worker.compute.runner.programs import MAX_NEW_TOKENS, DeviceState, ProgramOutput
from engine_worker.compute.runner.prompt_calls import prompt_calls
from engine_worker.compute.runner.run_ahead import RunAhead, following, is_sampled_later
from engine_worker.compute.runner.score_program import (
    MAX_SCORE_PAIRS,
    max_answers,
    num_scratch_blocks,
)
from engine_worker.compute.runner.step_outcome import StepOutcome
from engine_worker.compute.sampling.penalties import count_tokens
from engine_worker.core.choice.batch import ProgressCallback, RowWork, StepBatch, StepResult
from engine_worker.core.choice.cache_group import CacheGroup
from engine_worker.core.choice.score_pack import LEAST_OF_A_KIND, ScoreLimits, ScorePack
from engine_worker.core.decoding.speculation import MAX_DRAFT_TOKENS


class JaxModelRunner:
    """Implements `engine_worker.core.choice.batch.ModelRunner`; made by `create`.

    A step is one call of a decode program for all rows with a single token and calls of prefill
    programs for the others: short ones share a call where that is cheaper. Draft tokens are further
    rows of the decode program. Rows that want more than these can do are sampled by a call of the
    full sampler that follows. In the deterministic mode all tokens, of prompts and of outputs, go
    through one program of a fixed shape, one token a row, and all are sampled by one full sampler,
    so that what a token computes depends on nothing but its own request.

    It is long because the port alone has eighteen members, all on the one state of the device.
    """

    program_set: ClassVar[type[ProgramSet]] = ProgramSet

    def __init__(
        self, decoder: PackedDecoder, kv_layout: KvLayout, buckets: Buckets, limits: RunnerLimits
    ) -> None:
        self._backend = decoder.backend
        self._kv_layout = kv_layout
        self._buckets = buckets
        self._limits = limits
        self._programs = self.program_set(decoder, kv_layout, buckets, limits)
        # Tokens of slots whose counts are not on the device yet: most requests never need them.
        self._uncounted: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._ahead = RunAhead()
        self._state = self._programs.new_state()
        self._row_limits = RowLimits(
            max_new_tokens=self.max_new_tokens,
            num_slots=limits.max_num_seqs,
            max_num_tokens=self.prefill_chunk_size,
            max_model_len=limits.max_model_len,
            cache_groups=self.cache_groups,
            block_size=kv_layout.block_size,
            table_width=self._programs.table_width,
        )

    @classmethod
    def create(
        cls,
        weights: DecoderWeights | PackedDecoder,
        *,
        num_blocks: int | Sequence[int],
        max_model_len: int,
        block_size: int = 32,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        deterministic: bool = False,
        speculates: bool = False,
        run_ahead: bool | None = None,
        compiler_yields: bool = False,
        program_folder: Path | None = None,
    ) -> Self:
        """A runner with an empty cache and no program compiled yet.

        Args:
            weights: The decoder. Weights that no backend has packed are computed by plain XLA, and
                their dtype is also the cache's.
            num_blocks: KV blocks of each cache group, see
                `compute.backends.kv_memory.choose_num_blocks`; one number is for each of them.
            max_model_len: The longest prompt and output together, tokens.
            block_size: Tokens a block.
            max_num_seqs: Slots, and the most rows of a step.
            max_num_batched_tokens: The most tokens of prompts in a step.
            deterministic: Equal requests get equal bits, whatever runs beside them; needs a backend
                that is batch invariant, as XLA is in float32.
            speculates: Decode programs have room for draft tokens beside a few rows.
            run_ahead: Whether steps are begun before they are asked for; None does it where the
                device works while the host does something else.
            compiler_yields: Whether the compiler's threads, which all runners of a process share,
                get a lower priority for good once the first programs are compiled.
            program_folder: Where traced programs are kept, see `ExportedPrograms`.

        Raises:
            ValueError: A number is out of range, or deterministic with other than float32.
        """
        if isinstance(weights, DecoderWeights):
            weights = PackedDecoder(XlaBackend(weights.graph), weights.leaves)
        backend = weights.backend
        if not 1 <= max_num_seqs <= DECODE_ROWS[-1]:
            raise ValueError(f"max_num_seqs must be 1 to {DECODE_ROWS[-1]}, not {max_num_seqs}")
        num_blocks = backend.layer_groups.blocks_by_group(num_blocks)
        if min(*num_blocks, block_size, max_model_len, max_num_batched_tokens) < 1:
            raise ValueError("num_blocks, block_size, max_model_len and tokens must be at least 1")
        if deterministic and not backend.is_batch_invariant:
            raise ValueError(
                f"the deterministic mode needs float32 weights on xla, not {backend.weight_type}"
            )
        rings = state_rings(
            backend.spec,
            num_slots=max_num_seqs,
            max_draft_tokens=MAX_DRAFT_TOKENS if speculates else 0,
        )
        kv_layout = backend.kv_layout(num_blocks=num_blocks, block_size=block_size, rings=rings)
        buckets = choose_buckets(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            min_rows=backend.min_rows,
            deterministic=deterministic,
            speculates=speculates,
            skips_padding=backend.skips_padding,
        )
        if run_ahead is None:
            run_ahead = jax.default_backend() != "cpu"
        limits = RunnerLimits(
            max_num_seqs,
            max_model_len,
            max_num_batched_tokens,
            deterministic,
            run_ahead,
            compiler_yields,
            program_folder,
        )
        return cls(weights, kv_layout, buckets, limits)

    @property
    def num_blocks(self) -> int:
        """KV blocks of the first cache group, for tests and benchmarks."""
        return self._kv_layout.num_blocks[0]

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        layout = self._kv_layout
        return tuple(map(CacheGroup, layout.num_blocks, layout.groups.reaches))

    @property
    def block_size(self) -> int:
        return self._kv_layout.block_size

    @property
    def max_num_seqs(self) -> int:
        return self._limits.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        return self._limits.max_num_batched_tokens

    @property
    def prefill_chunk_size(self) -> int:
        return self._buckets.prefill_chunk_size or self._limits.max_num_batched_tokens

    @property
    def max_new_tokens(self) -> int:
        # The deterministic mode samples apart from its step.
        return 1 if self._limits.deterministic else MAX_NEW_TOKENS

    @property
    def decode_rows(self) -> tuple[int, ...]:
        return tuple(bucket.num_rows for bucket in self._buckets.decode)

    @property
    def max_draft_tokens(self) -> int:
        if self._backend.spec.state_bytes == 0:
            return self.decode_rows[-1] - 1
        # Of the states behind the last known token, those of all draft tokens and of the token
        # that is computed with them are kept until it is known which of them are right.
        return self._kv_layout.rings.num_states - 2

    @property
    def runs_ahead(self) -> bool:
        return self._limits.run_ahead and not self._limits.deterministic

    @property
    def num_compiles(self) -> int:
        return self._programs.num_compiles

    @property
    def backend(self) -> Backend:
        """Who computes the decoder."""
        return self._backend

    @property
    def kv_layout(self) -> KvLayout:
        """How the cache lies in memory."""
        return self._kv_layout

    @property
    def ahead(self) -> RunAhead:
        """The step that was begun ahead, for tests and benchmarks."""
        return self._ahead

    @property
    def state(self) -> DeviceState:
        """The arrays between steps, for tests and benchmarks; the next step donates them."""
        return self._state

    @property
    def programs(self) -> Mapping[Bucket, Any]:
        """The compiled step programs so far, for tests and benchmarks."""
        return self._programs.compiled_steps

    @property
    def packed_layouts(self) -> Mapping[Bucket, PackedLayout]:
        """The layout of each program's inputs, for benchmarks."""
        return self._programs.packed_layouts

    def assign_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        self._ahead.drop_slot(slot)
        self._uncounted[slot] = (tuple(prompt_token_ids), tuple(output_token_ids))

    def run(self, batch: StepBatch) -> StepResult:
        """Computes one step; see the port.

        Raises:
            ValueError: A row breaks the limits that the properties state; nothing was computed.
            Exception: Whatever jax raises; the state may be lost, so `reset` must follow.
        """
        next_rows = batch.next_rows if self.runs_ahead else ()
        with_next = set(next_rows)
        for index, row in enumerate(batch.rows):
            self._row_limits.check(row, has_next=index in with_next)
        rows = split_drafts(batch.rows, self.decode_rows[-1], self.max_draft_tokens)
        if len(rows) > len(batch.rows):
            for row in rows:
                self._row_limits.check(row)
            next_rows = ()
        outcome = StepOutcome(len(rows), self._programs.expert_bytes)
        self._count_slots(rows)
        if self._limits.deterministic:
            self._run_tiles(rows, outcome)
        else:
            self._run_buckets(rows, outcome, next_rows)
        result = outcome.result()
        return result if rows is batch.rows else join_drafts(batch.rows, result)

    @property
    def score_limits(self) -> ScoreLimits:
        shapes = self._buckets.score_shapes
        return ScoreLimits(
            shapes,
            MAX_SCORE_PAIRS,
            tuple(map(max_answers, shapes)),
            least_of_a_kind=1 if self._limits.deterministic else LEAST_OF_A_KIND,
        )

    def num_scratch_blocks(self, num_stored: int, num_tokens: int) -> int:
        """Blocks that a row of tokens behind a beginning borrows; see the port."""
        return num_scratch_blocks(num_stored, num_tokens, self.block_size)

    def score(
        self,
        pack: ScorePack,
        num_stored: int,
        slot: int,
        block_ids: Sequence[Sequence[int]],
        scratch_ids: Sequence[Sequence[Sequence[int]]],
    ) -> npt.NDArray[np.float32]:
        """Scores a pack after the tokens that some blocks hold; see the port."""
        self._ahead.drop_written(
            [{one for scratch in lent for one in scratch} for lent in scratch_ids]
        )
        scores, self._state = self._programs.score(
            self._state, pack, num_stored, slot, block_ids, scratch_ids
        )
        return scores[: len(pack.pairs)]

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compiles the programs that any work fits, and the others behind; see the port."""
        self._programs.warm_up(progress)

    def finish_warm_up(self) -> None:
        """Waits for the programs that `warm_up` left to be compiled behind."""
        self._programs.store.finish_warm_up()

    def program_bytes(self) -> int:
        """Working memory of the largest program, beside weights and state; compiles three."""
        return self._programs.working_bytes()

    def close(self) -> None:
        """Ends compiling behind; see the port."""
        self._programs.store.stop()

    def reset(self) -> None:
        """Rebuilds the device state with an empty cache; see the port."""
        self._uncounted.clear()
        self._ahead.drop()
        self._state = self._programs.new_state()

    def release_memory(self, block_ids: Sequence[Sequence[int]]) -> int:
        """Gives back the memory of blocks that hold nothing; see the port."""
        self._ahead.drop()
        return self._kv_layout.release(self._state.cache, block_ids)

    def _run_buckets(
        self, rows: Sequence[RowWork], outcome: StepOutcome, next_rows: Sequence[int]
    ) -> None:
        decodes = [i for i, row in enumerate(rows) if row.is_plain or row.is_decode]
        prefills = [] if len(decodes) == len(rows) else sorted(set(range(len(rows))) - set(decodes))
        if not self._ahead.is_empty:
            decodes = self._take_begun(rows, decodes, outcome)
        if decodes:
            self._decode(decodes, [rows[i] for i in decodes], outcome)
        first_ready = self._programs.store.first_ready
        for bucket, indices in prompt_calls(self._buckets, first_ready, rows, prefills):
            self._prefill(bucket, indices, [rows[i] for i in indices], outcome)
        if next_rows:
            self._begin(rows, next_rows, outcome)

    def _take_begun(
        self, rows: Sequence[RowWork], decodes: list[int], outcome: StepOutcome
    ) -> list[int]:
        """Takes what was begun of a step; which of its decodes are left to compute."""
        if len({rows[i].slot for i in decodes}) < len(decodes):
            # Draft tokens: their row's states follow from one program.
            self._ahead.drop()
        taken = self._ahead.take(decodes, [rows[i] for i in decodes])
        if taken is None:
            return decodes
        outcome.put_output(taken.indices, taken.output, taken.columns)
        self._sample_apart(taken.apart, [rows[i] for i in taken.apart], outcome)
        return sorted(set(decodes).difference(taken.indices))

    def _begin(
        self, rows: Sequence[RowWork], next_rows: Sequence[int], outcome: StepOutcome
    ) -> None:
        """Begins the next step of some rows; only then waits for the tokens of this one."""
        begun = [following(rows[i]) for i in next_rows]
        apart = {i for i, row in enumerate(begun) if is_sampled_later(row)}
        bucket = self._programs.store.first_ready(self._buckets.for_decode(len(begun)))
        output = self._step(bucket, begun, apart)
        outcome.read()
        token_ids = outcome.token_ids()
        self._ahead.keep(output, begun, apart, [token_ids[i] for i in next_rows])

    def _decode(
        self, indices: Sequence[int], rows: Sequence[RowWork], outcome: StepOutcome
    ) -> None:
        """Runs and samples the step's rows of one token, which `indices` names."""
        bucket = self._programs.store.first_ready(self._buckets.for_decode(len(rows)))
        self._compute(bucket, indices, rows, self._apart(rows), outcome)

    def _prefill(
        self, bucket: Bucket, indices: Sequence[int], rows: Sequence[RowWork], outcome: StepOutcome
    ) -> None:
        """Runs chunks of prompts, and samples and scores what they ask for."""
        apart = [i for i, row in enumerate(rows) if row.sample and row.needs_full_sampler]
        output = self._compute(bucket, indices, rows, apart, outcome)
        if rows[0].scored_token_ids:
            self._score(indices[0], rows[0], np.asarray(output.hidden), outcome)

    def _compute(
        self,
        bucket: Bucket,
        indices: Sequence[int],
        rows: Sequence[RowWork],
        apart: Sequence[int],
        outcome: StepOutcome,
    ) -> ProgramOutput:
        """Runs some rows of a step in one program, and samples those apart that it doesn't."""
        output = self._step(bucket, rows, apart)
        outcome.put_output(indices, output)
        self._sample_apart([indices[i] for i in apart], [rows[i] for i in apart], outcome)
        return output

    def _apart(self, rows: Sequence[RowWork]) -> list[int]:
        """Which rows of a decode are sampled apart from it: none more than those that have to.

        But all, where the full sampler has as many rows anyway: the head's matrix is read once
        then.
        """
        apart = [i for i, row in enumerate(rows) if not row.is_plain and row.needs_full_sampler]
        if not apart or any(row.max_new_tokens > 1 for row in rows):
            return apart
        is_one_slot_a_row = len({row.slot for row in rows}) == len(rows)
        if is_one_slot_a_row and self._buckets.sampler_rows_for(len(apart)) >= len(rows):
            return list(range(len(rows)))
        return apart

    def _run_tiles(self, rows: Sequence[RowWork], outcome: StepOutcome) -> None:
        bucket = self._buckets.decode[0]
        pieces = [piece for index, row in enumerate(rows) for piece in _single_tokens(index, row)]
        for first in range(0, len(pieces), bucket.num_rows):
            tile = pieces[first : first + bucket.num_rows]
            indices, works = [index for index, _ in tile], [work for _, work in tile]
            places = range(len(works))
            outcome.put_experts(self._step(bucket, works, places))
            targets = [next(iter(work.scored_token_ids), None) for work in works]
            self._sample_fully(indices, works, places, targets, outcome)

    def _step(
        self, bucket: Bucket, rows: Sequence[RowWork], apart: Collection[int] = ()
    ) -> ProgramOutput:
        output, self._state = self._programs.step(self._state, bucket, rows, apart)
        return output

    def _sample_apart(
        self, indices: Sequence[int], rows: Sequence[RowWork], outcome: StepOutcome
    ) -> None:
        """Samples rows of a step from the hidden states that it left."""
        if rows:
            places = [row.slot for row in rows]
            self._sample_fully(indices, rows, places, [None] * len(rows), outcome)

    def _sample_fully(
        self,
        indices: Sequence[int],
        rows: Sequence[RowWork],
        places: Sequence[int],
        targets: Sequence[int | None],
        outcome: StepOutcome,
        hidden: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Samples rows, or scores their targets; see `ProgramSet.sample`."""
        fitting = [num for num in self._buckets.sampler_rows if num >= len(rows)]
        num_rows = self._programs.store.first_ready(fitting)
        outputs, self._state = self._programs.sample(
            self._state, num_rows, rows, places, targets, hidden
        )
        sampler = self._programs.samplers[num_rows]
        outcome.put_samples(indices, sampler, outputs, rows, targets)

    def _score(
        self,
        index: int,
        row: RowWork,
        hidden: npt.NDArray[np.float32],
        outcome: StepOutcome,
    ) -> None:
        """Scores a chunk's following tokens from its hidden states [Q, hidden]."""
        num_rows = max(self._programs.samplers)
        unsampled = structs.replace(row, sample=False)
        for first in range(0, len(row.scored_token_ids), num_rows):
            targets = row.scored_token_ids[first : first + num_rows]
            num = len(targets)
            tile = np.zeros((self._programs.num_hidden, hidden.shape[1]), np.float32)
            tile[:num] = hidden[first : first + num]
            self._sample_fully([index] * num, [unsampled] * num, range(num), targets, outcome, tile)

    def _count_slots(self, rows: Sequence[RowWork]) -> None:
        for row in rows:
            if row.sampling.uses_penalties and row.sample and row.slot in self._uncounted:
                self._count_slot(row.slot, *self._uncounted.pop(row.slot))

    def _count_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        vocab_size = self._backend.spec.vocab_size
        slot_counts = count_tokens(prompt_token_ids, output_token_ids, vocab_size)
        self._state = self._programs.set_counts(self._state, slot, slot_counts)


def _single_tokens(index: int, row: RowWork) -> list[tuple[int, RowWork]]:
    """A row as rows of one token each, with the index of the row; only the last is sampled."""
    last = len(row.token_ids) - 1
    return [
        (
            index,
            structs.replace(
                row,
                token_ids=(token_id,),
                start=row.start + offset,
                sample=row.sample and offset == last,
                scored_token_ids=row.scored_token_ids[offset : offset + 1],
            ),
        )
        for offset, token_id in enumerate(row.token_ids)
    ]

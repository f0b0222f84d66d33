"""The model runner on jax: owns the device state and runs each step's rows through its programs."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.batch import ProgressCallback, RowWork, StepBatch, StepResult
from engine_worker.compile_cache import count_cache_hits
from engine_worker.kv_cache import KvLayout
from engine_worker.models.decoder import DecoderWeights
from engine_worker.runner.buckets import DECODE_ROWS, Bucket, Buckets, choose_buckets
from engine_worker.runner.packing import MAX_MASKED_TOKEN_IDS, PackedLayout
from engine_worker.runner.programs import (
    DeviceState,
    StepProgram,
    blocks_per_turn,
    set_slot_counts,
)
from engine_worker.sampling.penalties import count_tokens
from engine_worker.sampling.sampler import NAN_LOGITS, NOT_SAMPLED

_COMPILER_STACK_BYTES: Final = 64 * 2**20
_log = logging.getLogger("penstock.runner")


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """What a runner is built for; see the properties of `JaxModelRunner`."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    deterministic: bool


class JaxModelRunner:
    """Implements `engine_worker.batch.ModelRunner`; made by `create`.

    A step is one call of a decode program for all rows with a single token and one call of a
    prefill program for each other row. In the deterministic mode all tokens, of prompts and of
    outputs, go through one program of a fixed shape, one token a row, so that what a token computes
    depends on nothing but its own request.
    """

    def __init__(
        self, weights: DecoderWeights, kv_layout: KvLayout, buckets: Buckets, limits: RunnerLimits
    ) -> None:
        self._weights = weights
        self._kv_layout = kv_layout
        self._buckets = buckets
        self._limits = limits
        group = blocks_per_turn(kv_layout.block_size)
        num_table_blocks = -(-limits.max_model_len // kv_layout.block_size)
        self._table_width = -(-num_table_blocks // group) * group
        self._programs: dict[Bucket, Any] = {}
        self._packed_layouts = {bucket: self._packed_layout(bucket) for bucket in buckets.all}
        self._set_counts: Any = None
        self._num_compiles = 0
        # Tokens of slots whose counts are not on the device yet: most requests never need them.
        self._uncounted: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._state = self._new_state()

    @classmethod
    def create(
        cls,
        weights: DecoderWeights,
        *,
        num_blocks: int,
        max_model_len: int,
        block_size: int = 32,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        deterministic: bool = False,
    ) -> "JaxModelRunner":
        """A runner with an empty cache and no program compiled yet.

        Args:
            weights: The decoder; its dtype is also the cache's.
            num_blocks: KV blocks, see `engine_worker.kv_cache.choose_num_blocks`.
            max_model_len: The longest prompt and output together, tokens.
            block_size: Tokens a block.
            max_num_seqs: Slots, and the most rows of a step.
            max_num_batched_tokens: The most tokens of a step.
            deterministic: Equal requests get equal bits, whatever runs beside them; float32 only.

        Raises:
            ValueError: A number is out of range, or deterministic with other than float32.
        """
        graph = weights.graph
        if not 1 <= max_num_seqs <= DECODE_ROWS[-1]:
            raise ValueError(f"max_num_seqs must be 1 to {DECODE_ROWS[-1]}, not {max_num_seqs}")
        if min(num_blocks, block_size, max_model_len, max_num_batched_tokens) < 1:
            raise ValueError("num_blocks, block_size, max_model_len and tokens must be at least 1")
        if deterministic and graph.dtype != jnp.float32:
            raise ValueError(f"the deterministic mode needs float32 weights, not {graph.dtype}")
        kv_layout = KvLayout.of(
            graph.spec, graph.dtype, num_blocks=num_blocks, block_size=block_size
        )
        buckets = choose_buckets(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            min_rows=1 if graph.dtype == jnp.float32 else 2,
            deterministic=deterministic,
        )
        limits = RunnerLimits(max_num_seqs, max_model_len, max_num_batched_tokens, deterministic)
        return cls(weights, kv_layout, buckets, limits)

    @property
    def num_blocks(self) -> int:
        return self._kv_layout.num_blocks

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
    def num_compiles(self) -> int:
        return self._num_compiles

    @property
    def kv_layout(self) -> KvLayout:
        """How the cache lies in memory."""
        return self._kv_layout

    @property
    def state(self) -> DeviceState:
        """The arrays between steps, for tests and benchmarks; the next step donates them."""
        return self._state

    @property
    def programs(self) -> Mapping[Bucket, Any]:
        """The compiled programs so far, for tests and benchmarks."""
        return self._programs

    @property
    def packed_layouts(self) -> Mapping[Bucket, PackedLayout]:
        """The layout of each program's inputs, for benchmarks."""
        return self._packed_layouts

    def assign_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        self._uncounted[slot] = (tuple(prompt_token_ids), tuple(output_token_ids))

    def run(self, batch: StepBatch) -> StepResult:
        """Computes one step; see the port.

        Raises:
            ValueError: A row breaks the limits that the properties state; nothing was computed.
            Exception: Whatever jax raises; the state may be lost, so `reset` must follow.
        """
        for row in batch.rows:
            self._check(row)
        tokens = np.full(len(batch.rows), NOT_SAMPLED, np.int32)
        self._count_slots(batch.rows)
        if self._limits.deterministic:
            self._run_tiles(batch.rows, tokens)
        else:
            self._run_buckets(batch.rows, tokens)
        has_nan = tokens == NAN_LOGITS
        return StepResult(np.where(has_nan, NOT_SAMPLED, tokens), has_nan)

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compiles every program; see the port."""
        started = time.monotonic()
        missing = [bucket for bucket in self._buckets.all if bucket not in self._programs]
        num_programs = len(missing) + 1
        progress(0.0, f"compiling {num_programs} programs")
        # The compiler releases the interpreter but leaves cores idle between its own parallel parts.
        with count_cache_hits() as hits, _compiler_threads() as threads:
            futures = {threads.submit(self._compile, bucket): bucket for bucket in missing}
            for num_done, future in enumerate(as_completed(futures), start=1):
                self._programs[futures[future]] = future.result()
                self._num_compiles += 1
                progress(num_done / num_programs, f"compiled {_describe(futures[future])}")
            self._count_slot(0, (), ())
        progress(1.0, f"compiled {num_programs} programs")
        _log.info(
            "%d programs ready in %.1f s, %d of them from the compile cache",
            num_programs,
            time.monotonic() - started,
            len(hits),
        )

    def reset(self) -> None:
        """Rebuilds the device state with an empty cache; see the port."""
        self._uncounted.clear()
        self._state = self._new_state()

    def _new_state(self) -> DeviceState:
        shape = (self.max_num_seqs, self._weights.graph.spec.vocab_size)
        return DeviceState(self._kv_layout.allocate(), jnp.zeros(shape, jnp.int32))

    def _packed_layout(self, bucket: Bucket) -> PackedLayout:
        return PackedLayout(
            bucket, self._table_width, self.max_num_seqs, self._kv_layout.padding_block
        )

    def _check(self, row: RowWork) -> None:
        num_tokens = len(row.token_ids)
        end = row.start + num_tokens
        if not 0 <= row.slot < self.max_num_seqs:
            raise ValueError(f"slot {row.slot} is not below {self.max_num_seqs}")
        if not 1 <= num_tokens <= self.prefill_chunk_size:
            raise ValueError(f"a row has 1 to {self.prefill_chunk_size} tokens, not {num_tokens}")
        if row.start < 0 or end > self._limits.max_model_len:
            raise ValueError(f"a row ends at {end}, beyond {self._limits.max_model_len} tokens")
        if (
            not end <= len(row.block_ids) * self.block_size
            or len(row.block_ids) > self._table_width
        ):
            raise ValueError(f"{len(row.block_ids)} blocks do not fit a row of {end} tokens")
        if min(row.block_ids) < 0 or max(row.block_ids) >= self.num_blocks:
            raise ValueError(f"block ids are 0 to {self.num_blocks - 1}")
        if len(row.sampling.stop_token_ids_masked) > MAX_MASKED_TOKEN_IDS:
            raise ValueError(f"more than {MAX_MASKED_TOKEN_IDS} masked token ids")

    def _run_buckets(self, rows: Sequence[RowWork], tokens: npt.NDArray[np.int32]) -> None:
        decodes = [i for i, row in enumerate(rows) if len(row.token_ids) == 1 and row.sample]
        if decodes:
            bucket = self._buckets.for_decode(len(decodes))
            tokens[decodes] = self._call(bucket, [rows[i] for i in decodes])[: len(decodes)]
        for index in sorted(set(range(len(rows))) - set(decodes)):
            bucket = self._buckets.for_prefill(len(rows[index].token_ids))
            tokens[index] = self._call(bucket, [rows[index]])[0]

    def _run_tiles(self, rows: Sequence[RowWork], tokens: npt.NDArray[np.int32]) -> None:
        bucket = self._buckets.decode[0]
        pieces = [piece for index, row in enumerate(rows) for piece in _single_tokens(index, row)]
        for first in range(0, len(pieces), bucket.num_rows):
            tile = pieces[first : first + bucket.num_rows]
            sampled = self._call(bucket, [work for _, work in tile])
            for (index, work), token in zip(tile, sampled, strict=False):
                if work.sample:
                    tokens[index] = token

    def _call(self, bucket: Bucket, rows: Sequence[RowWork]) -> npt.NDArray[np.int32]:
        packed = self._packed_layouts[bucket].pack(rows)
        program = self._program(bucket)
        sampled, self._state = program(self._weights.leaves, self._state, packed)
        return np.asarray(sampled)

    def _program(self, bucket: Bucket) -> Any:
        if bucket not in self._programs:
            self._programs[bucket] = self._compile(bucket)
            self._num_compiles += 1
        return self._programs[bucket]

    def _compile(self, bucket: Bucket) -> Any:
        """The step of a bucket, compiled ahead of time, so that a call can never retrace."""
        layout = self._packed_layouts[bucket]
        step = StepProgram(self._weights.graph, self._kv_layout, layout)
        lowered = jax.jit(step, donate_argnums=1).lower(
            self._weights.leaves, self._state, layout.pack(())
        )
        return lowered.compile()

    def _count_slots(self, rows: Sequence[RowWork]) -> None:
        for row in rows:
            if row.sample and row.sampling.uses_penalties and row.slot in self._uncounted:
                self._count_slot(row.slot, *self._uncounted.pop(row.slot))

    def _count_slot(
        self, slot: int, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> None:
        vocab_size = self._weights.graph.spec.vocab_size
        slot_counts = count_tokens(prompt_token_ids, output_token_ids, vocab_size)
        slot_index = np.asarray(slot, np.int32)
        if self._set_counts is None:
            lowered = jax.jit(set_slot_counts, donate_argnums=0).lower(
                self._state.counts, slot_index, slot_counts
            )
            self._set_counts = lowered.compile()
            self._num_compiles += 1
        counts = self._set_counts(self._state.counts, slot_index, slot_counts)
        self._state = self._state._replace(counts=counts)


def _single_tokens(index: int, row: RowWork) -> list[tuple[int, RowWork]]:
    """A row as rows of one token each, with the index of the row; only the last is sampled."""
    last = len(row.token_ids) - 1
    return [
        (
            index,
            RowWork(
                slot=row.slot,
                token_ids=(token_id,),
                start=row.start + offset,
                block_ids=row.block_ids,
                sample=row.sample and offset == last,
                sampling=row.sampling,
            ),
        )
        for offset, token_id in enumerate(row.token_ids)
    ]


def _describe(bucket: Bucket) -> str:
    if bucket.is_prefill:
        return f"prefill of {bucket.num_queries} tokens"
    return f"decode of {bucket.num_rows} rows"


@contextmanager
def _compiler_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool for compiling; deep models overflow the compiler's stack at the usual 8 MiB."""
    usual_stack_bytes = threading.stack_size(_COMPILER_STACK_BYTES)
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "compile") as threads:
            yield threads
    finally:
        threading.stack_size(usual_stack_bytes)

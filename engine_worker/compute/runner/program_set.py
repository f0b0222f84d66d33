"""All programs of a runner: which there are, what they are compiled for, and how one is called."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import Backend, PackedDecoder
from engine_worker.compute.backends.kv_layout import KvLayout
from engine_worker.compute.runner.buckets import Bucket, Buckets
from engine_worker.compute.runner.compiler_threads import CompilerThreads
from engine_worker.compute.runner.exported_programs import ExportedPrograms
from engine_worker.compute.runner.full_sampler import FullSampler
from engine_worker.compute.runner.limits import RunnerLimits
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.compute.runner.program_store import ProgramStore
from engine_worker.compute.runner.programs import (
    DeviceState,
    ProgramOutput,
    StepProgram,
    set_slot_counts,
)
from engine_worker.compute.runner.score_program import ScoreLayout, ScoreProgram
from engine_worker.compute.runner.step_buffer import StepBuffer
from engine_worker.core.choice.batch import ProgressCallback, RowWork
from engine_worker.core.choice.score_pack import ScorePack


class ProgramSet:
    """The step programs by their bucket, and the full samplers by their number of rows.

    Attributes:
        packed_layouts: The layout of each step program's inputs.
        samplers: What packs and reads for the full samplers.
        table_width: Block ids of a row.
        num_hidden: Places of hidden states that a full sampler takes.
        expert_bytes: Of one expert, for each layer that has some.
        store: The compiled programs.
    """

    def __init__(
        self, decoder: PackedDecoder, kv_layout: KvLayout, buckets: Buckets, limits: RunnerLimits
    ) -> None:
        self._decoder = decoder
        self.expert_bytes = decoder.expert_bytes
        self._kv_layout = kv_layout
        self._buckets = buckets
        self._num_slots = limits.max_num_seqs
        self._is_hidden_by_row = limits.deterministic
        self.num_hidden = max(self._num_slots + 1, buckets.sampler_rows[-1])
        group = decoder.backend.table_multiple(kv_layout.block_size)
        num_table_blocks = -(-limits.max_model_len // kv_layout.block_size)
        self.table_width = -(-num_table_blocks // group) * group
        # On an accelerator steps don't need the cores that the compiler takes.
        is_cpu = jax.default_backend() == "cpu"
        threads = CompilerThreads() if is_cpu and limits.compiler_yields else None
        self.store = ProgramStore[Bucket | int | ScoreLayout](
            self.compile, describe, compiler_threads=threads
        )
        self._exported = ExportedPrograms(
            limits.program_folder,
            [
                *_parts(decoder.backend, kv_layout),
                self.table_width,
                self._num_slots,
                self._is_hidden_by_row,
            ],
            decoder.backend.custom_calls,
        )
        self._score_layouts = {
            shape: ScoreLayout(shape, self.table_width, kv_layout) for shape in buckets.score_shapes
        }
        self.packed_layouts: Mapping[Bucket, PackedLayout] = {
            bucket: PackedLayout(
                bucket, self.table_width, self._num_slots, kv_layout.padding_blocks
            )
            for bucket in buckets.all
        }
        self._buffers = {
            bucket: StepBuffer(layout)
            for bucket, layout in self.packed_layouts.items()
            if not bucket.is_prefill
        }
        self.samplers = {
            num_rows: FullSampler(decoder.backend, num_rows, self._num_slots)
            for num_rows in buckets.sampler_rows
        }
        self._set_counts: Any = None
        # What programs are compiled for, in any thread: a step donates the state itself.
        self._abstract_state = DeviceState(kv_layout.abstract(), *jax.eval_shape(self._new_rows))

    @property
    def num_compiles(self) -> int:
        """Programs that were compiled so far."""
        return self.store.num_compiles + (self._set_counts is not None)

    @property
    def compiled_steps(self) -> Mapping[Bucket, Any]:
        """The compiled step programs so far."""
        programs = self.store.programs
        return {bucket: programs[bucket] for bucket in self._buckets.all if bucket in programs}

    def new_state(self) -> DeviceState:
        """The arrays between steps, with an empty cache."""
        cache = self._kv_layout.allocate(self._decoder.backend.unwritten)
        return DeviceState(cache, *self._new_rows())

    def _new_rows(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Counts, last tokens and hidden states."""
        spec = self._decoder.backend.spec
        return (
            jnp.zeros((self._num_slots, spec.vocab_size), jnp.int32),
            jnp.zeros(self._num_slots + 1, jnp.int32),
            jnp.zeros((self.num_hidden, spec.hidden_size), jnp.float32),
        )

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compiles the programs that any step fits, and the others behind; see the port."""
        first = self._buckets.largest
        progress(0.0, f"compiling {len(first)} programs")
        # Most engines are never asked to score: these come last, or with the first question.
        others = (*self._buckets.by_demand, *self._score_layouts.values())
        self.store.warm_up(first, others, progress)
        self._compile_set_counts()
        progress(1.0, f"compiled {len(first)} programs, the others follow")

    def working_bytes(self) -> int:
        """Working memory of the largest program, beside weights and state; compiles a few."""
        largest = (*self._buckets.largest, *self._score_layouts.values())
        compiled = [self.store.get(key).memory_analysis() for key in largest]
        # What is donated is counted as an output too, but is no new memory.
        sizes_bytes: list[int] = [
            memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            for memory in compiled
        ]
        return max(sizes_bytes)

    def compile(self, key: Bucket | int | ScoreLayout) -> Any:
        """A program, compiled ahead of time, so that a call can never retrace."""
        backend, leaves = self._decoder.backend, self._decoder.leaves
        state, lower = self._abstract_state, self._exported.lower
        if isinstance(key, ScoreLayout):
            shape, packed = key.shape, np.zeros(key.num_entries, np.int32)
            args: tuple[Any, ...] = (leaves, state.cache, packed)
            name = f"score_{shape.num_rows}_{shape.num_tokens}"
            scoring = ScoreProgram(backend, key)
            return lower(name, scoring, args, (0, state.cache), donated=(1,)).compile()
        if isinstance(key, int):
            sampler = self.samplers[key]
            inputs = sampler.pack((), (), ())
            args = (leaves, state.counts, state.last_tokens, state.hidden, inputs)
            return lower(f"sample_{key}", sampler, args, (0, 0, 0), donated=(1, 2)).compile()
        layout = self.packed_layouts[key]
        step = StepProgram(
            backend, layout, self._kv_layout, is_hidden_by_row=self._is_hidden_by_row
        )
        kind = "prefill" if key.is_prefill else "decode"
        has_hidden = key.is_prefill and not key.is_group
        has_counts = not key.is_prefill and backend.spec.num_layers_with_experts > 0
        output: Any = ProgramOutput(
            *(0, 0 if has_hidden else None, 0 if has_counts else None)  # type: ignore[arg-type]
        )
        args = (leaves, state, layout.pack(()))
        name = f"{kind}{'s' * key.is_group}_{key.num_rows}_{key.num_queries}"
        return lower(name, step, args, (output, state), donated=(1,)).compile()

    def step(
        self,
        state: DeviceState,
        bucket: Bucket,
        rows: Sequence[RowWork],
        apart: Collection[int] = (),
    ) -> tuple[ProgramOutput, DeviceState]:
        """Dispatches a step program; `state` is donated.

        Args:
            state: The arrays between steps.
            bucket: Of the program.
            rows: What it computes.
            apart: Indices of rows that it doesn't sample; `sample` does.
        """
        buffer = self._buffers.get(bucket) or self.packed_layouts[bucket]
        packed = buffer.pack(rows, apart)
        output: ProgramOutput
        output, state = self.store.get(bucket)(self._decoder.leaves, state, packed)
        return output, state

    def sample(
        self,
        state: DeviceState,
        num_rows: int,
        rows: Sequence[RowWork],
        places: Sequence[int],
        targets: Sequence[int | None],
        hidden: npt.NDArray[np.float32] | None = None,
    ) -> tuple[jax.Array, DeviceState]:
        """Dispatches a full sampler: what `FullSampler.read` takes.

        Args:
            state: Its counts and last tokens are donated.
            num_rows: Of the sampler.
            rows: At most as many.
            places: Where the hidden state of each stands.
            targets: See `FullSampler.pack`.
            hidden: [num_hidden, hidden], if the state doesn't have them.
        """
        inputs = self.samplers[num_rows].pack(rows, places, targets)
        outputs, counts, last_tokens = self.store.get(num_rows)(
            self._decoder.leaves,
            state.counts,
            state.last_tokens,
            state.hidden if hidden is None else hidden,
            inputs,
        )
        return outputs, state._replace(counts=counts, last_tokens=last_tokens)

    def score(
        self,
        state: DeviceState,
        pack: ScorePack,
        num_stored: int,
        slot: int,
        block_ids: Sequence[Sequence[int]],
        scratch_ids: Sequence[Sequence[Sequence[int]]],
    ) -> tuple[npt.NDArray[np.float32], DeviceState]:
        """Runs a scoring program: [P] log probabilities. The cache of `state` is donated."""
        layout = self._score_layouts[pack.shape]
        packed = layout.pack(pack, num_stored, slot, block_ids, scratch_ids)
        scores, cache = self.store.get(layout)(self._decoder.leaves, state.cache, packed)
        return np.asarray(scores), state._replace(cache=cache)

    def set_counts(
        self, state: DeviceState, slot: int, slot_counts: npt.NDArray[np.int32]
    ) -> DeviceState:
        """Replaces the counts of one slot, [V] int32; the counts of `state` are donated."""
        self._compile_set_counts()
        counts = self._set_counts(state.counts, np.asarray(slot, np.int32), slot_counts)
        return state._replace(counts=counts)

    def _compile_set_counts(self) -> None:
        if self._set_counts is None:
            counts = self._abstract_state.counts
            slot_counts = np.zeros(counts.shape[1], np.int32)
            lowered = jax.jit(set_slot_counts, donate_argnums=0).lower(
                counts, np.asarray(0, np.int32), slot_counts
            )
            self._set_counts = lowered.compile()


def _parts(backend: Backend, kv_layout: KvLayout) -> list[Any]:
    """All that the programs of a runner are made of, beside their names and arguments."""
    return [
        backend.name,
        backend.weight_type,
        backend.cache_dtype,
        backend.packing.layout,
        backend.placements,
        backend.stored_formats,
        backend.spec,
        kv_layout,
    ]


def describe(program: Bucket | int | ScoreLayout) -> str:
    """A step program's bucket, the rows of a full sampler, or what is scored."""
    if isinstance(program, ScoreLayout):
        shape = program.shape
        return f"the scoring of {shape.num_rows} rows of {shape.num_tokens} tokens"
    if isinstance(program, int):
        return f"the full sampler of {program} rows"
    if program.is_group:
        return f"prefill of {program.num_prompts} prompts of {program.num_queries} tokens"
    if program.is_prefill:
        return f"prefill of {program.num_queries} tokens"
    return f"decode of {program.num_rows} rows"

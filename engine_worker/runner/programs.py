"""The step program of one bucket: forward, KV writes, attention, logits and sampling, fused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.attention.paged import attend_pages
from engine_worker.kv_cache import KvCache, KvLayout, store_tokens
from engine_worker.models.decoder import DecoderGraph, Leaves
from engine_worker.runner.packing import PackedLayout, StepInputs
from engine_worker.sampling.sampler import NOT_SAMPLED, count_sampled, sample_tokens

MAX_ATTENTION_SPAN = 128
"""The most tokens that one turn of the attention loop reads, or one block where that is larger."""
_MANY_ROWS = 16


class DeviceState(NamedTuple):
    """What lives on the device between steps; every program takes it donated and returns it.

    Attributes:
        cache: Keys and values.
        counts: [num_slots, V] int32 token counts for penalties.
    """

    cache: KvCache
    counts: jax.Array


class StepOutput(NamedTuple):
    """What a step program computed beside the new state.

    Attributes:
        tokens: [R] int32 token ids (`NOT_SAMPLED`, `NAN_LOGITS`).
        last_hidden: [S, hidden] float32, of each row's last token, for sampling apart from the
            step; S the rows of the sampler that takes it, at least R.
        hidden: [Q, hidden] float32, of each token of a prefill's row; None in decode.
    """

    tokens: jax.Array
    last_hidden: jax.Array
    hidden: jax.Array | None


def blocks_per_turn(block_size: int, num_token_rows: int = 1) -> int:
    """Blocks of each row that one turn of the attention loop reads.

    Few rows take long turns, because a turn has its own cost; many rows take short ones, because
    a row's last turn reads on average half a turn for nothing.
    """
    span = MAX_ATTENTION_SPAN if num_token_rows < _MANY_ROWS else MAX_ATTENTION_SPAN // 2
    return max(1, span // block_size)


class StepProgram:
    """A pure step over (weights, state, packed inputs) for one bucket.

    Args:
        graph: The decoder; its structure is closed over, its weights are arguments.
        kv_layout: Of the cache in the state.
        packed_layout: Of the packed inputs.
        num_sampler_rows: Rows of the full sampler that goes on from this step.
    """

    def __init__(
        self,
        graph: DecoderGraph,
        kv_layout: KvLayout,
        packed_layout: PackedLayout,
        num_sampler_rows: int,
    ) -> None:
        self._num_sampler_rows = num_sampler_rows
        self._graph = graph
        self._kv_layout = kv_layout
        self._packed_layout = packed_layout

    def __call__(
        self, leaves: Leaves, state: DeviceState, packed: jax.Array
    ) -> tuple[StepOutput, DeviceState]:
        """Computes the step.

        Args:
            leaves: All weights.
            state: Donated.
            packed: [num_entries] int32, see `PackedLayout`.

        Returns:
            What was computed, and the new state.
        """
        inputs = self._packed_layout.unpack(packed)
        hidden, cache = self._forward(leaves, state.cache, inputs)
        is_prefill = self._packed_layout.bucket.is_prefill
        last_hidden = _last_of_chunk(hidden, inputs) if is_prefill else hidden
        tokens = self._sample(leaves, last_hidden, state.counts, inputs)
        counts = count_sampled(state.counts, tokens, inputs.sampling)
        num_missing = self._num_sampler_rows - last_hidden.shape[0]
        output = StepOutput(
            tokens,
            jnp.pad(last_hidden, ((0, num_missing), (0, 0))),
            hidden if is_prefill else None,
        )
        return output, DeviceState(cache, counts)

    def _forward(
        self, leaves: Leaves, cache: KvCache, inputs: StepInputs
    ) -> tuple[jax.Array, KvCache]:
        """Hidden states [T * Q, hidden] of all tokens, and the cache with all tokens."""
        block_size = self._kv_layout.block_size
        tables = inputs.block_tables
        own_blocks = jnp.take_along_axis(tables, inputs.positions // block_size, 1, mode="clip")
        own_blocks = jnp.where(inputs.is_token, own_blocks, self._kv_layout.padding_block)
        block_ids, offsets = own_blocks.reshape(-1), (inputs.positions % block_size).reshape(-1)
        layers = list(cache)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            # Written before they are read: measured faster than attending to them apart, but for
            # a single float32 row, and it makes a chunk, a decode and a recompute one and the same.
            layers[layer] = store_tokens(layers[layer], k, v, block_ids, offsets)
            out = attend_pages(
                q.reshape(*inputs.positions.shape, *q.shape[1:]),
                layers[layer],
                tables,
                inputs.num_stored,
                inputs.positions,
                self._graph.spec.layers[layer].attention,
                blocks_per_turn(block_size, inputs.positions.shape[0]),
            )
            return out.reshape(q.shape)

        hidden = self._graph.forward(
            leaves, inputs.token_ids.reshape(-1), inputs.positions.reshape(-1), attend
        )
        return hidden, tuple(layers)

    def _sample(
        self, leaves: Leaves, hidden: jax.Array, counts: jax.Array, inputs: StepInputs
    ) -> jax.Array:
        def choose() -> jax.Array:
            return sample_tokens(self._graph.logits(leaves, hidden), counts, inputs.sampling)

        # All chunks of a prompt but the last need no logits, nor do steps that sample apart.
        nothing = jnp.full(inputs.sampling.slots.shape, NOT_SAMPLED, jnp.int32)
        is_wanted = jnp.any(inputs.sampling.sampled)
        tokens: jax.Array = lax.cond(is_wanted, choose, lambda: nothing)
        return tokens


def _last_of_chunk(hidden: jax.Array, inputs: StepInputs) -> jax.Array:
    """The chunk's last token, as many times as there are rows: the head's product has them too."""
    num_rows = inputs.sampling.slots.shape[0]
    last = jnp.sum(inputs.is_token.astype(jnp.int32)) - 1
    return hidden.at[jnp.repeat(last, num_rows)].get(mode="clip")


def set_slot_counts(counts: jax.Array, slot: jax.Array, slot_counts: jax.Array) -> jax.Array:
    """Counts [S, V] with the row of one slot replaced by [V]; `counts` is to be donated."""
    return lax.dynamic_update_slice(counts, slot_counts[None], (slot, jnp.int32(0)))

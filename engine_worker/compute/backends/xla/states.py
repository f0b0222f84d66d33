"""Where the states of recurrent layers lie, and how a step goes from one to the next.

The state after the first n tokens of a sequence has one address: where these tokens fill a block,
it lies with that block; in the middle of a block it lies in the ring of the sequence's slot, at n
modulo the ring's size. So whoever has the blocks of a beginning has its state, and a step that is
computed again, from a little before, finds the state that it began with (ADR 50).
"""

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.compute.backends.base import StepTokens
from engine_worker.compute.backends.kv_layout import KvLayout, LayerStates
from engine_worker.compute.models.recurrent.state import Advance, Inputs, State


def state_addresses(
    layout: KvLayout, num_tokens: jax.Array, block_tables: jax.Array, slots: jax.Array
) -> jax.Array:
    """Addresses [T, Q] int32 of the states after the first tokens of some rows.

    Args:
        layout: Of the cache.
        num_tokens: [T, Q] int32, at least 1.
        block_tables: [T, MB] int32.
        slots: [T] int32.
    """
    last_blocks = (num_tokens - 1) // layout.block_size
    blocks = jnp.take_along_axis(block_tables, last_blocks, 1, mode="clip")
    num_states = layout.rings.num_states
    ring = layout.num_blocks[0] + 1 + slots[:, None] * num_states + num_tokens % num_states
    return jnp.where(num_tokens % layout.block_size == 0, blocks, ring)


def recur_in_step(
    layer: LayerStates, step: StepTokens, inputs: Inputs, advance: Advance
) -> tuple[jax.Array, LayerStates]:
    """Computes what goes from token to token, for the tokens of a step.

    Args:
        layer: The states of one layer; updated in place when the caller's program donates them.
        step: The tokens.
        inputs: [T * Q, ...] each.
        advance: Of the block.

    Returns:
        [T * Q, ...] float32, noise for padding; and the layer with the states after these tokens.
    """
    shape = step.positions.shape
    inputs = tuple(each.reshape(*shape, *each.shape[1:]) for each in inputs)
    compute = _recur_rows if shape[1] == 1 else _recur_chunks
    outputs, layer = compute(layer, step, inputs, advance)
    return outputs.reshape(shape[0] * shape[1], *outputs.shape[2:]), layer


def _recur_rows(
    layer: LayerStates, step: StepTokens, inputs: Inputs, advance: Advance
) -> tuple[jax.Array, LayerStates]:
    """Rows of one token, some of which may follow one another in a sequence.

    One turn computes the first row of every sequence, the next one the second rows, and so on:
    mostly there is just one turn.
    """
    starts, is_token = step.positions[:, 0], step.is_token[:, 0]
    rows = jnp.arange(starts.shape[0], dtype=jnp.int32)
    goes_on = (step.slots[1:] == step.slots[:-1]) & is_token[1:] & is_token[:-1]
    is_first = jnp.concatenate([jnp.ones(1, bool), ~goes_on])
    turn_of = rows - lax.cummax(jnp.where(is_first, rows, 0))
    num_turns = jnp.max(jnp.where(is_token, turn_of, -1)) + 1
    before = _addresses(step, jnp.maximum(starts, 1), step.slots)
    after = _addresses(step, starts + 1, step.new_slots)
    output_shape = jax.eval_shape(
        lambda: advance(_load(layer, before, starts), inputs, is_token[:, None])[0]
    )

    def compute(
        turn: jax.Array, carry: tuple[LayerStates, jax.Array]
    ) -> tuple[LayerStates, jax.Array]:
        layer, outputs = carry
        is_now = is_token & (turn_of == turn)
        new_outputs, state = advance(_load(layer, before, starts), inputs, is_now[:, None])
        layer = _store(layer, state, jnp.where(is_now, after, step.layout.padding_state))
        now = is_now.reshape(-1, *([1] * (outputs.ndim - 1)))
        return layer, jnp.where(now, new_outputs, outputs)

    carry = (layer, jnp.zeros(output_shape.shape, output_shape.dtype))
    layer, outputs = lax.fori_loop(0, num_turns, compute, carry)
    return outputs, layer


def _recur_chunks(
    layer: LayerStates, step: StepTokens, inputs: Inputs, advance: Advance
) -> tuple[jax.Array, LayerStates]:
    """Rows of several tokens, each of a sequence of its own (or behind one that all follow).

    A turn computes the tokens of each row up to the next border between blocks, and keeps the
    state there.
    """
    num_rows, num_queries = step.positions.shape
    block_size = step.layout.block_size
    span = min(block_size, num_queries)
    starts = step.positions[:, 0]
    lengths = jnp.sum(step.is_token, axis=1, dtype=jnp.int32)
    to_border = block_size - starts % block_size
    num_turns = jnp.max(jnp.where(lengths > 0, (lengths - to_border - 1) // block_size + 2, 0))
    offsets = jnp.arange(span, dtype=jnp.int32)
    rows = jnp.arange(num_rows, dtype=jnp.int32)[:, None]
    before = _addresses(step, jnp.maximum(starts, 1), step.slots)
    state = _load(layer, before, starts)
    output_shape = jax.eval_shape(lambda: advance(state, inputs, step.is_token)[0])

    def compute(
        turn: jax.Array, carry: tuple[LayerStates, State, jax.Array]
    ) -> tuple[LayerStates, State, jax.Array]:
        layer, state, outputs = carry
        first = jnp.where(turn == 0, 0, to_border + (turn - 1) * block_size)
        end = jnp.minimum(lengths, to_border + turn * block_size)
        indices = first[:, None] + offsets
        is_now = indices < end[:, None]
        some = tuple(each.at[rows, indices].get(mode="clip") for each in inputs)
        new_outputs, state = advance(state, some, is_now)
        after = _addresses(step, starts + jnp.maximum(end, 1), step.new_slots)
        layer = _store(layer, state, jnp.where(end > first, after, step.layout.padding_state))
        kept = jnp.where(is_now, indices, num_queries)
        return layer, state, outputs.at[rows, kept].set(new_outputs, mode="drop")

    carry = (layer, state, jnp.zeros(output_shape.shape, output_shape.dtype))
    layer, _, outputs = lax.fori_loop(0, num_turns, compute, carry)
    return outputs, layer


def _addresses(step: StepTokens, num_tokens: jax.Array, slots: jax.Array) -> jax.Array:
    """Of the states [T] after `num_tokens` [T] of each row."""
    tables = step.block_tables[0]
    return state_addresses(step.layout, num_tokens[:, None], tables, slots)[:, 0]


def _load(layer: LayerStates, addresses: jax.Array, starts: jax.Array) -> State:
    """The states at some addresses; zeros for rows that begin their sequence."""

    def load(pool: jax.Array) -> jax.Array:
        states = pool.at[addresses].get(mode="promise_in_bounds")
        is_fresh = (starts == 0).reshape(-1, *([1] * (states.ndim - 1)))
        return jnp.where(is_fresh, 0.0, states)

    return tuple(map(load, layer.arrays))


def _store(layer: LayerStates, state: State, addresses: jax.Array) -> LayerStates:
    return LayerStates(
        tuple(
            pool.at[addresses].set(new, mode="promise_in_bounds")
            for pool, new in zip(layer.arrays, state, strict=True)
        )
    )

"""Attention of a few rows over their pages of the KV cache, by online softmax (arXiv 1805.02867).

Pages are visited in groups by a loop whose trip count follows the longest row of the step, so one
program serves every context length and no copy of a whole context is ever made. Query heads that
share a key head are folded into the rows of one product: heads are never repeated in memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine_worker.compute.backends.kv_layout import LayerPages
from engine_worker.compute.backends.xla.pages import load_pages
from engine_worker.compute.models.spec import AttentionSpec

MASKED_SCORE = -1e30
"""Stands for minus infinity: finite, so that a group without any visible key gives no NaN."""
_MAX_ROWS_BY_BLOCK = 64


class SoftmaxState(NamedTuple):
    """A softmax in progress; R = queries of a row times query heads of a key head.

    Attributes:
        maximum: [B, KH, R] float32, the largest score so far.
        total: [B, KH, R] float32, the sum of exp(score - maximum).
        weighted: [B, KH, R, D] float32, the sum of exp(score - maximum) * value.
    """

    maximum: jax.Array
    total: jax.Array
    weighted: jax.Array


def fold_queries(q: jax.Array, attention: AttentionSpec) -> jax.Array:
    """Scales queries and folds the heads of a key head into rows.

    Args:
        q: [B, Q, H, D] of any float type.
        attention: Heads and scale.

    Returns:
        [B, KH, Q * (H / KH), D] float32.
    """
    num_rows, num_queries, num_heads, head_dim = q.shape
    groups = num_heads // attention.num_kv_heads
    q = q.astype(jnp.float32) * attention.scale
    q = q.reshape(num_rows, num_queries, attention.num_kv_heads, groups, head_dim)
    return q.transpose(0, 2, 1, 3, 4).reshape(
        num_rows, attention.num_kv_heads, num_queries * groups, head_dim
    )


def empty_state(folded: jax.Array, value_dim: int, sinks: jax.Array | None = None) -> SoftmaxState:
    """The softmax over no key yet, for queries [B, KH, R, D], or over the heads' sinks [H]."""
    shape = folded.shape[:-1]
    if sinks is None:
        maximum, total = jnp.full(shape, MASKED_SCORE, jnp.float32), jnp.zeros(shape, jnp.float32)
    else:
        # Rows are the groups of one query after another.
        by_kv_head = sinks.reshape(shape[1], -1)
        by_row = jnp.tile(by_kv_head, (1, shape[2] // by_kv_head.shape[1]))
        maximum, total = jnp.broadcast_to(by_row, shape), jnp.ones(shape, jnp.float32)
    return SoftmaxState(
        maximum=maximum,
        total=total,
        weighted=jnp.zeros((*shape, value_dim), jnp.float32),
    )


def score(folded: jax.Array, keys: jax.Array) -> jax.Array:
    """Products of queries and the keys of some blocks.

    Args:
        folded: [B, KH, R, D] from `fold_queries`.
        keys: [B, KH, G, D, S] float32.

    Returns:
        [B, KH, R, G * S] float32.
    """
    num_rows, num_kv_heads, num_blocks, head_dim, block_size = keys.shape
    shape = (num_rows, num_kv_heads, folded.shape[2], num_blocks * block_size)
    if folded.shape[2] <= _MAX_ROWS_BY_BLOCK:
        # One product a block: the few queries are copied rather than the many keys.
        copies = jnp.broadcast_to(folded[:, :, None], (*keys.shape[:3], *folded.shape[2:]))
        by_block = _product(copies, keys)
        return by_block.transpose(0, 1, 3, 2, 4).reshape(shape)
    keys = keys.transpose(0, 1, 3, 2, 4).reshape(num_rows, num_kv_heads, head_dim, shape[3])
    return _product(folded, keys)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products in float32 over the last two axes; all axes before them are a batch."""
    return jnp.matmul(
        left, right, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def absorb(
    state: SoftmaxState,
    scores: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    softcap: float | None,
) -> SoftmaxState:
    """Adds some keys to the softmax.

    Args:
        state: So far.
        scores: [B, KH, R, S] float32 of the keys.
        values: [B, KH, S, D] float32, finite wherever no query sees them.
        visible: Broadcastable to [B, KH, R, S] bool.
        softcap: Of the layer.

    Returns:
        The softmax with these keys in it.
    """
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(visible, scores, MASKED_SCORE)
    maximum = jnp.maximum(state.maximum, jnp.max(scores, axis=-1))
    # What was gathered while nothing was visible yet is wiped here: exp(MASKED_SCORE - m) is 0.
    decay = jnp.exp(state.maximum - maximum)
    weights = jnp.exp(scores - maximum[..., None])
    return SoftmaxState(
        maximum=maximum,
        total=state.total * decay + jnp.sum(weights, axis=-1),
        weighted=state.weighted * decay[..., None] + _product(weights, values),
    )


def attend_pages(
    q: jax.Array,
    pages: LayerPages,
    block_tables: jax.Array,
    num_stored: jax.Array,
    q_positions: jax.Array,
    attention: AttentionSpec,
    group_blocks: int,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of each row's queries over the row's own pages.

    The keys of the queries' own tokens are already stored. A row's result has the same bits
    whatever the other rows hold: turns beyond its own length leave its softmax as it is.

    Args:
        q: [B, Q, H, D] of any float type, rotated, not scaled; of a latent attention, what meets
            the latent and then what meets the key.
        pages: The layer's part of the cache.
        block_tables: [B, MB] int32 ids of each row's blocks, in order; MB a multiple of
            `group_blocks`, every id in range.
        num_stored: [B] int32; the row's positions 0 .. num_stored - 1 are in the cache.
        q_positions: [B, Q] int32, ascending; beyond `num_stored` for padding.
        attention: Heads, window, scale and softcap.
        group_blocks: Blocks that one turn of the loop reads.
        sinks: [H] float32, a score of each head for which there is no value; None is none.

    Returns:
        [B, Q, H, D] float32; zeros or noise for padding.
    """
    folded = fold_queries(q, attention)
    num_rows, num_queries = q_positions.shape
    value_dim = attention.cached_value_dim
    span = group_blocks * pages.values.shape[2]
    limits = jnp.repeat(q_positions, folded.shape[2] // num_queries, axis=1)[:, None, :, None]
    offsets = jnp.arange(span, dtype=jnp.int32)
    first_seen = _first_seen(q_positions[:, 0], attention)

    def visit(turn: jax.Array, state: SoftmaxState) -> SoftmaxState:
        ids = lax.dynamic_slice(block_tables, (0, turn * group_blocks), (num_rows, group_blocks))
        keys, values = load_pages(pages, ids)
        positions = turn * span + offsets
        visible = positions <= limits
        if attention.window is not None:
            visible &= positions > limits - attention.window
        if attention.chunk is not None:
            visible &= positions >= limits // attention.chunk * attention.chunk
        # Beyond a row's end, and behind its window where blocks were freed, lies whatever a block
        # held before; a NaN there must not spread.
        stored = positions < num_stored[:, None]
        if first_seen is not None:
            stored &= positions >= first_seen[:, None]
        values = jnp.where(stored[:, None, :, None], values, 0.0)
        if attention.latent is None:
            scores = score(folded, keys)
        else:
            scores = score(folded[..., value_dim:], keys)
            scores += _product(folded[..., :value_dim], values.swapaxes(-1, -2))
        return absorb(state, scores, values, visible, attention.softcap)

    last_turn = (jnp.max(num_stored) + span - 1) // span
    first_turn = jnp.zeros((), jnp.int32)
    if first_seen is not None:
        no_row = np.iinfo(np.int32).max
        first_of_all = jnp.min(jnp.where(num_stored > 0, first_seen, no_row))
        first_turn = jnp.clip(first_of_all // span, 0, last_turn)
    state = empty_state(folded, value_dim, sinks)
    return finish(lax.fori_loop(first_turn, last_turn, visit, state), num_queries)


def _first_seen(positions: jax.Array, attention: AttentionSpec) -> jax.Array | None:
    """The first position that queries at `positions` [B] see, or one before it; None is 0."""
    if attention.window is not None:
        return positions - attention.window + 1
    if attention.chunk is not None:
        return positions // attention.chunk * attention.chunk
    return None


def finish(state: SoftmaxState, num_queries: int) -> jax.Array:
    """The attention's result: [B, Q, H, D] float32 from a softmax over all keys."""
    # Padding rows may have met no key at all.
    out = state.weighted / jnp.maximum(state.total, np.finfo(np.float32).tiny)[..., None]
    num_rows, num_kv_heads, folded_rows, head_dim = out.shape
    groups = folded_rows // num_queries
    out = out.reshape(num_rows, num_kv_heads, num_queries, groups, head_dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(
        num_rows, num_queries, num_kv_heads * groups, head_dim
    )

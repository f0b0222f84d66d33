"""The layout of the cache for XLA, and how tokens are stored and loaded.

Each layer has its own keys `[num_blocks + 1, kv_heads, head_dim, block_size]` and values
`[num_blocks + 1, kv_heads, block_size, head_dim]`. Heads stand before tokens, and tokens last in
the keys, so that a page is already in the order in which attention multiplies it: XLA:CPU takes
twice as long for a product with keys that lie token by token.

bfloat16 is kept as its bits in uint16, because XLA:CPU stores into a bfloat16 array by converting
all of it to float32 and back; a uint16 array is updated in place. int8 has the four bytes of a
token's scale behind its numbers, as further rows of `head_dim`; it is made float32 where it is
read.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.backends.cache_type import (
    INT8,
    SCALE_BYTES,
    dequantized,
    quantized_tokens,
)
from engine_worker.compute.backends.kv_layout import (
    NO_RINGS,
    BlockShapes,
    KvLayout,
    LayerPages,
    LayerStateShapes,
    StateRings,
)
from engine_worker.compute.backends.layer_groups import layer_groups
from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, LayerSpec


def xla_kv_layout(
    spec: DecoderSpec,
    dtype: DTypeLike,
    *,
    num_blocks: int | Sequence[int],
    block_size: int,
    rings: StateRings = NO_RINGS,
) -> KvLayout:
    """The layout for a decoder.

    Args:
        spec: The decoder.
        dtype: Of keys and values as numbers: float32, bfloat16 or int8.
        num_blocks: For each cache group the blocks that block ids may name.
        block_size: Tokens a block.
        rings: Of recurrent layers.
    """
    numbers = np.dtype(dtype)
    layers = tuple(layer_shapes(layer, block_size, numbers) for layer in spec.layers)
    groups = layer_groups(spec)
    return KvLayout(groups.blocks_by_group(num_blocks), block_size, layers, numbers, rings, groups)


def layer_shapes(
    layer: LayerSpec, block_size: int, dtype: DTypeLike
) -> BlockShapes | LayerStateShapes | None:
    """What a layer keeps: a block of keys and values of a type, a state, or nothing of its own."""
    mixer = layer.mixer
    if isinstance(mixer, AttentionSpec) and mixer.shared_from is not None:
        return None
    if isinstance(mixer, AttentionSpec):
        return block_shapes(mixer, block_size, dtype)
    return LayerStateShapes(mixer.state_shapes)


def block_shapes(attention: AttentionSpec, block_size: int, dtype: DTypeLike) -> BlockShapes:
    """What a block of one layer is, for keys and values of a type."""
    kv_heads = attention.num_kv_heads
    stored = np.dtype(np.uint16) if dtype == jnp.bfloat16 else np.dtype(dtype)
    scale = SCALE_BYTES if stored == INT8 else 0
    return BlockShapes(
        keys=(kv_heads, attention.head_dim + scale, block_size),
        values=(kv_heads, block_size, attention.cached_value_dim + scale),
        stored_dtype=stored,
    )


def load_pages(pages: LayerPages, block_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads some blocks of each row.

    Args:
        pages: One layer.
        block_ids: [B, G] int32, in range.

    Returns:
        Keys [B, KH, G, D, block_size] and values [B, KH, G * block_size, D], float32.
    """
    num_rows, num_blocks = block_ids.shape
    _, kv_heads, block_size, _ = pages.values.shape
    values = _load(pages.values, block_ids, -1)
    return (
        _load(pages.keys, block_ids, -2),
        values.reshape(num_rows, kv_heads, num_blocks * block_size, -1),
    )


def _load(pool: jax.Array, block_ids: jax.Array, axis: int) -> jax.Array:
    """Blocks of each head of each row, [B, KH, G, ...]; `axis` has a token's numbers."""
    blocks = pool.at[block_ids].get(mode="promise_in_bounds")
    if pool.dtype == jnp.uint16:
        blocks = lax.bitcast_convert_type(blocks, jnp.bfloat16)
    if pool.dtype == INT8:
        blocks = dequantized(blocks, axis)
    return blocks.transpose(0, 2, 1, 3, 4).astype(jnp.float32)


def store_tokens(
    pages: LayerPages,
    keys: jax.Array,
    values: jax.Array,
    block_ids: jax.Array,
    offsets: jax.Array,
) -> LayerPages:
    """Writes tokens into their places; in place when the caller's program donates the cache.

    Args:
        pages: One layer.
        keys: [T, KH, D] of any float type; rounded to the cache's type.
        values: [T, KH, D].
        block_ids: [T] int32 in range; the padding block for tokens that are not to be kept.
        offsets: [T] int32, the token's place in its block.

    Returns:
        The layer with the tokens in it.
    """
    keys, values = _as_stored(keys, pages.keys.dtype), _as_stored(values, pages.values.dtype)
    mode = "promise_in_bounds"
    return LayerPages(
        pages.keys.at[block_ids, :, :, offsets].set(keys, mode=mode),
        pages.values.at[block_ids, :, offsets, :].set(values, mode=mode),
    )


def _as_stored(tokens: jax.Array, dtype: DTypeLike) -> jax.Array:
    if dtype == jnp.uint16:
        tokens = lax.bitcast_convert_type(tokens.astype(jnp.bfloat16), jnp.uint16)
    if dtype == INT8:
        return quantized_tokens(tokens)
    return tokens.astype(dtype)

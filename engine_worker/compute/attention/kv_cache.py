"""The paged KV cache on the device: its layout, its size, and how tokens are stored and loaded.

Each layer has its own keys `[num_blocks + 1, kv_heads, head_dim, block_size]` and values
`[num_blocks + 1, kv_heads, block_size, head_dim]`. Heads stand before tokens, and tokens last in
the keys, so that a page is already in the order in which attention multiplies it: XLA:CPU takes
twice as long for a product with keys that lie token by token. The last block is nobody's: padding
rows write there and padding table entries read there, so no index is ever out of range.

bfloat16 is kept as its bits in uint16, because XLA:CPU stores into a bfloat16 array by converting
all of it to float32 and back; a uint16 array is updated in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.spec import DecoderSpec
from engine_worker.errors import KvMemoryError
from protocol.runtime.container_limits import free_memory_bytes

MEMORY_SHARE = 0.3
"""Share of the memory now available that the cache takes when nothing says otherwise."""
ACCELERATOR_SHARE = 0.85
"""The same on a device with memory of its own, of what weights and programs leave."""


class LayerPages(NamedTuple):
    """Keys and values of one layer, in the stored type.

    Attributes:
        keys: [num_blocks + 1, KH, D, block_size].
        values: [num_blocks + 1, KH, block_size, D].
    """

    keys: jax.Array
    values: jax.Array


KvCache = tuple[LayerPages, ...]
"""One entry per layer."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How the cache lies in memory.

    Attributes:
        num_blocks: Blocks that block ids may name; one more is allocated for padding.
        block_size: Tokens a block.
        heads: Per layer (kv_heads, head_dim).
        dtype: Of keys and values as numbers: float32 or bfloat16.
    """

    num_blocks: int
    block_size: int
    heads: tuple[tuple[int, int], ...]
    dtype: np.dtype[np.generic]

    @classmethod
    def of(
        cls, spec: DecoderSpec, dtype: DTypeLike, *, num_blocks: int, block_size: int
    ) -> "KvLayout":
        """The layout for a decoder."""
        heads = tuple((x.attention.num_kv_heads, x.attention.head_dim) for x in spec.layers)
        return cls(num_blocks, block_size, heads, np.dtype(dtype))

    @property
    def padding_block(self) -> int:
        """Id of the block that padding writes to and reads from."""
        return self.num_blocks

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Of the arrays: float32, or uint16 holding bfloat16 bits."""
        return np.dtype(np.uint16) if self.dtype == jnp.bfloat16 else self.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole cache, the padding block included."""
        per_token = sum(kv_heads * head_dim for kv_heads, head_dim in self.heads)
        num_tokens = (self.num_blocks + 1) * self.block_size
        return 2 * num_tokens * per_token * self.stored_dtype.itemsize

    def allocate(self) -> KvCache:
        """A zeroed cache on the default device, made by one program."""
        num_blocks, block_size, dtype = self.num_blocks + 1, self.block_size, self.stored_dtype

        def make() -> KvCache:
            return tuple(
                LayerPages(
                    jnp.zeros((num_blocks, kv_heads, head_dim, block_size), dtype),
                    jnp.zeros((num_blocks, kv_heads, block_size, head_dim), dtype),
                )
                for kv_heads, head_dim in self.heads
            )

        cache: KvCache = jax.jit(make)()
        return cache


def load_pages(pages: LayerPages, block_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads some blocks of each row.

    Args:
        pages: One layer.
        block_ids: [B, G] int32, in range.

    Returns:
        Keys [B, KH, G, D, block_size] and values [B, KH, G * block_size, D], float32.
    """
    num_rows, num_blocks = block_ids.shape
    _, kv_heads, block_size, head_dim = pages.values.shape
    values = _load(pages.values, block_ids)
    return (
        _load(pages.keys, block_ids),
        values.reshape(num_rows, kv_heads, num_blocks * block_size, head_dim),
    )


def _load(pool: jax.Array, block_ids: jax.Array) -> jax.Array:
    """Blocks of each head of each row, [B, KH, G, ...]."""
    blocks = pool.at[block_ids].get(mode="promise_in_bounds")
    if pool.dtype == jnp.uint16:
        blocks = lax.bitcast_convert_type(blocks, jnp.bfloat16)
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
    return tokens.astype(dtype)


def block_bytes(spec: DecoderSpec, dtype: DTypeLike, block_size: int) -> int:
    """Bytes of one block over all layers."""
    one = KvLayout.of(spec, dtype, num_blocks=1, block_size=block_size)
    empty = KvLayout.of(spec, dtype, num_blocks=0, block_size=block_size)
    return one.size_bytes - empty.size_bytes


def size_kv_blocks(
    kv_memory_bytes: int, spec: DecoderSpec, dtype: DTypeLike, block_size: int
) -> int:
    """How many blocks fit into a given memory, the padding block not counted.

    Args:
        kv_memory_bytes: Memory for the whole cache.
        spec: The decoder.
        dtype: Of the cache as numbers.
        block_size: Tokens a block.

    Returns:
        A number of blocks; below 1 when not even one fits beside the padding block.
    """
    return kv_memory_bytes // block_bytes(spec, dtype, block_size) - 1


def device_memory_stats() -> Mapping[str, int] | None:
    """`Device.memory_stats()` of the default device; None where it has no memory of its own."""
    stats: Mapping[str, int] | None = jax.devices()[0].memory_stats()
    return stats if stats and "bytes_limit" in stats else None


def default_kv_memory_bytes(
    taken_bytes: int = 0, device_stats: Mapping[str, int] | None = None, root: Path = Path("/")
) -> int:
    """Memory for the cache when nothing says otherwise.

    Args:
        taken_bytes: Of weights that are not loaded yet, or of programs that will run on the device.
        device_stats: Of a device with memory of its own; None takes a share of what this process
            may still take of the system's, which in a container is what the container may.
        root: Of the file system that tells a container's limits.
    """
    if device_stats is not None:
        free_bytes = device_stats["bytes_limit"] - device_stats.get("bytes_in_use", 0)
        return int(max(0, free_bytes - taken_bytes) * ACCELERATOR_SHARE)
    free_bytes = free_memory_bytes(psutil.virtual_memory().available, root)
    return _round_down(int(max(0, free_bytes - taken_bytes) * MEMORY_SHARE))


def _round_down(size_bytes: int) -> int:
    """The size with its three leading bits only."""
    # The cache's size is part of every program: a restart with a little more or less memory free
    # gets the same one, and so finds its programs in the compile cache.
    shift = max(0, size_bytes.bit_length() - 3)
    return size_bytes >> shift << shift


def choose_num_blocks(
    spec: DecoderSpec,
    dtype: DTypeLike,
    *,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    kv_memory_bytes: int,
) -> int:
    """How many blocks a runner gets: what fits, but no more than all its rows could ever fill.

    Args:
        spec: The decoder.
        dtype: Of the cache as numbers.
        block_size: Tokens a block.
        max_num_seqs: Rows that run at once.
        max_model_len: The longest row, tokens.
        kv_memory_bytes: Memory for the cache.

    Raises:
        KvMemoryError: Not even one row of `max_model_len` tokens fits.
    """
    blocks_per_row = -(-max_model_len // block_size)
    num_blocks = size_kv_blocks(kv_memory_bytes, spec, dtype, block_size)
    if num_blocks < blocks_per_row:
        needed = (blocks_per_row + 1) * block_bytes(spec, dtype, block_size)
        raise KvMemoryError(
            f"the KV cache gets {kv_memory_bytes / 2**20:.1f} MiB, but one request of "
            f"{max_model_len} tokens needs {needed / 2**20:.1f} MiB: "
            "raise the KV memory or lower the maximum model length"
        )
    return min(num_blocks, max_num_seqs * blocks_per_row)

"""The paged KV cache on the device: how many blocks there are, and which arrays hold them.

How a block's numbers lie in an array is the backend's (`compute/backends/*/`). The last block is
nobody's: padding rows write there and padding table entries read there, so no index is ever out of
range.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.compute.backends.host_memory import release_pages


class LayerPages(NamedTuple):
    """Keys and values of one layer, as the backend stores them; blocks are the first axis."""

    keys: jax.Array
    values: jax.Array


KvCache = tuple[LayerPages, ...]
"""One entry per layer."""


@dataclass(frozen=True, slots=True)
class BlockShapes:
    """What one block of one layer is in the two arrays: [...] and [...] of the stored type."""

    keys: tuple[int, ...]
    values: tuple[int, ...]
    stored_dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Bytes of the block's keys and values."""
        numbers = int(np.prod(self.keys, dtype=np.int64)) + int(
            np.prod(self.values, dtype=np.int64)
        )
        return numbers * self.stored_dtype.itemsize


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How the cache lies in memory.

    Attributes:
        num_blocks: Blocks that block ids may name; one more is allocated for padding.
        block_size: Tokens a block.
        layers: What a block is, per layer.
        dtype: Of keys and values as numbers: float32 or bfloat16.
    """

    num_blocks: int
    block_size: int
    layers: tuple[BlockShapes, ...]
    dtype: np.dtype[Any]

    @property
    def padding_block(self) -> int:
        """Id of the block that padding writes to and reads from."""
        return self.num_blocks

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return sum(layer.size_bytes for layer in self.layers)

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole cache, the padding block included."""
        return (self.num_blocks + 1) * self.block_bytes

    def abstract(self) -> KvCache:
        """Shapes and types of the cache."""
        num_blocks = self.num_blocks + 1

        def make() -> KvCache:
            return tuple(
                LayerPages(
                    jnp.zeros((num_blocks, *layer.keys), layer.stored_dtype),
                    jnp.zeros((num_blocks, *layer.values), layer.stored_dtype),
                )
                for layer in self.layers
            )

        cache: KvCache = jax.eval_shape(make)
        return cache

    def allocate(self) -> KvCache:
        """A zeroed cache on the default device; in the host's memory it takes none until used."""
        make = jax.jit(_zeros, static_argnums=0)

        def reserve(like: jax.Array) -> jax.Array:
            array: jax.Array = make((like.shape, like.dtype)).block_until_ready()
            release_pages(array)
            return array

        # One after the other, so that never more than one of them is there in full.
        cache: KvCache = jax.tree.map(reserve, self.abstract())
        return cache


def _zeros(shape_and_type: tuple[tuple[int, ...], Any]) -> jax.Array:
    return jnp.zeros(*shape_and_type)

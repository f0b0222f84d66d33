"""The paged cache on the device: how many blocks there are, and which arrays hold them.

Layers that see all tokens and layers behind a window have blocks of their own, of which there are
more or fewer, and which their own tables name (ADR 53).

How a block's numbers lie in an array is the backend's (`compute/backends/*/`). The last block is
nobody's: padding rows write there and padding table entries read there, so no index is ever out of
range.

A recurrent layer keeps one state with each block, that after the block's last token, and beside
them those of sequences that are in the middle of a block: for each slot the states after its last
few tokens, in a ring, because a step may be computed again from a little before (ADR 50).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from engine_worker.compute.backends.layer_groups import LayerGroups
from engine_worker.compute.memory.host_memory import (
    drops_pages,
    release_pages,
    release_rows,
    use_large_pages,
)
from engine_worker.compute.models.recurrent.specs import StateShapes, bytes_of


class LayerPages(NamedTuple):
    """Keys and values of one layer, as the backend stores them; blocks are the first axis."""

    keys: jax.Array
    values: jax.Array


class LayerStates(NamedTuple):
    """The states of one recurrent layer.

    Attributes:
        arrays: One for each of `state_shapes`, [num_states, *shape] float32; the states of all
            blocks, the padding block's included, then the rings of all slots, and one for padding.
    """

    arrays: tuple[jax.Array, ...]


LayerCache = LayerPages | LayerStates | None
"""Of one layer; None for one that reads another one's pages."""

KvCache = tuple[LayerCache, ...]
"""One entry per layer."""


@dataclass(frozen=True, slots=True)
class BlockShapes:
    """What one block of one layer is in the two arrays: [...] and [...] of the stored type.

    Scales of int8 are in it.
    """

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
class LayerStateShapes:
    """What one state of a recurrent layer is: float32 arrays of these shapes."""

    shapes: StateShapes

    @property
    def size_bytes(self) -> int:
        """Bytes of one state."""
        return bytes_of(self.shapes)


@dataclass(frozen=True, slots=True)
class StateRings:
    """Where sequences in the middle of a block keep the states of recurrent layers.

    Attributes:
        num_slots: Sequences; one more ring is allocated for padding.
        num_states: Of each sequence: one more than the tokens that a step may be computed again
            from, counted back from the last it computed.
    """

    num_slots: int
    num_states: int = 2

    @property
    def num_all(self) -> int:
        """States of all rings."""
        return (self.num_slots + 1) * self.num_states


NO_RINGS = StateRings(num_slots=0)
"""For caches whose sequences all end with the step that began them."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How the cache lies in memory.

    Attributes:
        num_blocks: For each cache group the blocks that block ids may name; one more is allocated
            for padding.
        block_size: Tokens a block.
        layers: What a block is, per layer; None for a layer that reads another one's pages.
        dtype: Of keys and values as numbers: float32, bfloat16 or int8.
        rings: Of recurrent layers.
        groups: Which layers have which blocks.
    """

    num_blocks: tuple[int, ...]
    block_size: int
    layers: tuple[BlockShapes | LayerStateShapes | None, ...]
    dtype: np.dtype[Any]
    rings: StateRings
    groups: LayerGroups

    @property
    def padding_blocks(self) -> tuple[int, ...]:
        """For each cache group the id of the block that padding writes to and reads from."""
        return self.num_blocks

    @property
    def padding_state(self) -> int:
        """Address of the state that padding writes to."""
        return self.num_blocks[0] + self.rings.num_all

    @property
    def block_bytes(self) -> tuple[int, ...]:
        """For each cache group the bytes of one block over its layers."""
        sizes = [0] * len(self.num_blocks)
        for layer, group in zip(self.layers, self.groups.of_layer, strict=True):
            sizes[group] += 0 if layer is None else layer.size_bytes
        return tuple(sizes)

    @property
    def ring_bytes(self) -> int:
        """Bytes of the states that lie beside the blocks."""
        state_bytes = sum(x.size_bytes for x in self.layers if isinstance(x, LayerStateShapes))
        return self.rings.num_all * state_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole cache, the padding blocks and all rings included."""
        blocks = zip(self.num_blocks, self.block_bytes, strict=True)
        return sum((num + 1) * size for num, size in blocks) + self.ring_bytes

    def abstract(self) -> KvCache:
        """Shapes and types of the cache."""

        def make_layer(layer: BlockShapes | LayerStateShapes | None, group: int) -> LayerCache:
            num_blocks = self.num_blocks[group] + 1
            num_states = num_blocks + self.rings.num_all
            if layer is None:
                return None
            if isinstance(layer, LayerStateShapes):
                float32 = np.dtype(np.float32)
                return LayerStates(
                    tuple(_abstract((num_states, *shape), float32) for shape in layer.shapes)
                )
            return LayerPages(
                _abstract((num_blocks, *layer.keys), layer.stored_dtype),
                _abstract((num_blocks, *layer.values), layer.stored_dtype),
            )

        return tuple(map(make_layer, self.layers, self.groups.of_layer))

    def allocate(
        self, unwritten: Callable[[Sequence[int], DTypeLike], jax.Array] = jnp.zeros
    ) -> KvCache:
        """A zeroed cache on the default device; in the host's memory it takes none until used.

        Args:
            unwritten: `Backend.unwritten`, for a start that doesn't fill what is dropped at once.
        """
        make = jax.jit(unwritten if drops_pages() else jnp.zeros, static_argnums=(0, 1))

        def reserve(like: jax.Array) -> jax.Array:
            array: jax.Array = make(like.shape, like.dtype).block_until_ready()
            release_pages(array)
            use_large_pages(array)
            return array

        # One after the other, so that never more than one of them is there in full.
        cache: KvCache = jax.tree.map(reserve, self.abstract())
        return cache

    def release(self, cache: KvCache, block_ids: Sequence[Sequence[int]]) -> int:
        """Gives memory of the host back that blocks take; their content is lost.

        Args:
            cache: Of this layout; nothing is computed with it meanwhile.
            block_ids: For each cache group.

        Returns:
            Bytes; 0 on another device, and where the blocks don't fill a large page together.
        """
        runs = [_runs(ids) for ids in block_ids]
        jax.block_until_ready(cache)  # type: ignore[no-untyped-call]
        return sum(
            release_rows(array, runs[group])
            for layer, group in zip(cache, self.groups.of_layer, strict=True)
            for array in jax.tree.leaves(layer)
        )


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The numbers as ranges, each its first one and the one after its last."""
    if not numbers:
        return []
    ordered = np.sort(np.asarray(numbers))
    pieces = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    return [(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


def _abstract(shape: tuple[int, ...], dtype: np.dtype[Any]) -> jax.Array:
    """Shape and type, which are all that is asked of it."""
    abstract: Any = jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
    return cast(jax.Array, abstract)

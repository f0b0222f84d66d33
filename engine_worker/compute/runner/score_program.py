"""Scores tokens after a shared beginning: rows of tokens that follow it, each in scratch blocks.

A row reads the beginning's blocks, which nobody writes to. Its own tokens go into blocks that are
lent to it for this call; the first of them begins as a copy of the beginning's last block, where
that isn't full. So any number of rows follow one prompt, whatever backend computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.compute.backends.base import Backend, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache, KvLayout, LayerCache, LayerPages
from engine_worker.compute.models.decoder import Leaves
from engine_worker.compute.runner.packing import write_table
from engine_worker.core.choice.score_pack import ScorePack, ScoreShape

MAX_SCORE_PAIRS: Final = 512
_ANSWERS_A_ROW: Final = 2
"""Places of a row, on average, that something is scored after; labels of many tokens need more,
and then fewer rows are in a call."""


class _ScoreInputs(NamedTuple):
    """What the packed vector holds.

    Attributes:
        num_stored: [] int32, tokens of the beginning.
        copied_blocks: [G] int32, the beginning's last block, for each cache group.
        slot: [] int32, of the choice that computed the beginning.
        lengths: [T] int32, tokens of each row.
        block_tables: [G, T, MB] int32.
        first_blocks: [G, T] int32, each row's first scratch block.
        token_ids: [T, Q] int32.
        pair_places: [P] int32, row times Q plus offset; at most `max_answers` different ones.
        pair_token_ids: [P] int32.
    """

    num_stored: jax.Array
    copied_blocks: jax.Array
    slot: jax.Array
    lengths: jax.Array
    block_tables: jax.Array
    first_blocks: jax.Array
    token_ids: jax.Array
    pair_places: jax.Array
    pair_token_ids: jax.Array


@dataclass(frozen=True, slots=True)
class ScoreLayout:
    """The inputs of one program, in one vector.

    Attributes:
        shape: Rows (T) of tokens (Q).
        table_width: Block ids of a row (MB).
        kv_layout: Of the cache.
    """

    shape: ScoreShape
    table_width: int
    kv_layout: KvLayout

    @property
    def _sizes(self) -> tuple[int, ...]:
        rows, tokens = self.shape.num_rows, self.shape.num_tokens
        groups = len(self.kv_layout.num_blocks)
        tables, firsts = groups * rows * self.table_width, groups * rows
        return (
            1,
            groups,
            1,
            rows,
            tables,
            firsts,
            rows * tokens,
            MAX_SCORE_PAIRS,
            MAX_SCORE_PAIRS,
        )

    @property
    def num_entries(self) -> int:
        """Length of the vector."""
        return sum(self._sizes)

    def pack(
        self,
        pack: ScorePack,
        num_stored: int,
        slot: int,
        block_ids: Sequence[Sequence[int]],
        scratch_ids: Sequence[Sequence[Sequence[int]]],
    ) -> npt.NDArray[np.int32]:
        """The input vector of one call.

        Args:
            pack: Of this shape.
            num_stored: Tokens of the beginning.
            slot: Of the choice that computed them.
            block_ids: That hold them, for each cache group.
            scratch_ids: For each cache group and row, as many as `num_scratch_blocks` says.
        """
        packed = np.zeros(self.num_entries, np.int32)
        stored, copied, slots, lengths, tables, firsts, tokens, places, ids = np.split(
            packed, np.cumsum(self._sizes)[:-1]
        )
        num_full, is_partial = divmod(num_stored, self.kv_layout.block_size)
        stored[0] = num_stored
        slots[0] = slot
        num_groups = len(self.kv_layout.num_blocks)
        firsts = firsts.reshape(num_groups, -1)
        tables = tables.reshape(num_groups, -1, self.table_width)
        for group, padding_block in enumerate(self.kv_layout.padding_blocks):
            held = block_ids[group]
            copied[group] = held[num_full] if is_partial else padding_block
            firsts[group] = padding_block
            tables[group] = padding_block
            for index, scratch in enumerate(scratch_ids[group]):
                write_table(tables[group, index], held[:num_full], padding_block)
                tables[group, index, num_full : num_full + len(scratch)] = scratch
                firsts[group, index] = scratch[0]
        token_ids = tokens.reshape(-1, self.shape.num_tokens)
        for index, row in enumerate(pack.rows):
            lengths[index] = len(row)
            token_ids[index, : len(row)] = row
        for index, pair in enumerate(pack.pairs):
            places[index] = pair.row * self.shape.num_tokens + pair.offset
            ids[index] = pair.token_id
        # Padding asks after a place that a pair asks after, so it is no further one.
        places[len(pack.pairs) :] = places[0]
        return packed

    def unpack(self, packed: jax.Array) -> _ScoreInputs:
        """The inverse of `pack`, inside a program."""
        parts = jnp.split(packed, np.cumsum(self._sizes)[:-1])
        num_groups = len(self.kv_layout.num_blocks)
        return _ScoreInputs(
            num_stored=parts[0][0],
            copied_blocks=parts[1],
            slot=parts[2][0],
            lengths=parts[3],
            block_tables=parts[4].reshape(num_groups, -1, self.table_width),
            first_blocks=parts[5].reshape(num_groups, -1),
            token_ids=parts[6].reshape(-1, self.shape.num_tokens),
            pair_places=parts[7],
            pair_token_ids=parts[8],
        )


class ScoreProgram:
    """A pure program over (weights, cache, packed inputs).

    Args:
        backend: Computes the decoder.
        layout: Of the inputs.
    """

    def __init__(self, backend: Backend, layout: ScoreLayout) -> None:
        self._backend = backend
        self._layout = layout

    def __call__(
        self, leaves: Leaves, cache: KvCache, packed: jax.Array
    ) -> tuple[jax.Array, KvCache]:
        """Scores the pairs of a pack.

        Args:
            leaves: All weights, packed.
            cache: Donated; only scratch blocks, and the padding block, differ afterwards.
            packed: [num_entries] int32 of `ScoreLayout.pack`.

        Returns:
            [P] float32, the natural logarithm of each pair's probability, NaN where the model
            computed no number; and the cache.
        """
        inputs = self._layout.unpack(packed)
        layout = self._layout.kv_layout
        cache = tuple(
            _with_copies(layer, inputs.first_blocks[group], inputs.copied_blocks[group])
            for layer, group in zip(cache, layout.groups.of_layer, strict=True)
        )
        offsets = jnp.arange(self._layout.shape.num_tokens, dtype=jnp.int32)
        lengths = inputs.lengths[:, None]
        step = StepTokens(
            token_ids=inputs.token_ids,
            positions=jnp.broadcast_to(inputs.num_stored + offsets, inputs.token_ids.shape),
            is_token=offsets < lengths,
            num_stored=jnp.where(inputs.lengths > 0, inputs.num_stored + inputs.lengths, 0),
            block_tables=tuple(inputs.block_tables),
            slots=jnp.broadcast_to(inputs.slot, inputs.lengths.shape),
            # Nobody goes on from a row, so only the state before it is read.
            new_slots=jnp.full(inputs.lengths.shape, layout.rings.num_slots, jnp.int32),
            layout=layout,
        )
        blocks = self._backend.bind(leaves)
        places, pair_rows = _distinct(inputs.pair_places, self._num_answers)
        is_place = jnp.arange(self._num_answers) <= jnp.max(pair_rows)
        is_wanted = jnp.zeros(inputs.token_ids.size, bool).at[places].max(is_place)
        hidden, cache = forward(blocks, self._backend.spec, cache, step, is_wanted)
        logits = blocks.head(hidden[places], is_place)
        log_sums = jax.nn.logsumexp(logits, axis=1)
        # One place too many would have no row: no number, rather than another place's.
        found = logits.at[pair_rows, inputs.pair_token_ids].get(mode="fill", fill_value=jnp.nan)
        # A row with an infinity has no softmax either.
        scores = jnp.where(jnp.isfinite(found), found - log_sums[pair_rows], jnp.nan)
        return scores, cache

    @property
    def _num_answers(self) -> int:
        return max_answers(self._layout.shape)


def max_answers(shape: ScoreShape) -> int:
    """Places of a call that something is scored after, at most."""
    return max(32, _ANSWERS_A_ROW * shape.num_rows)


def num_scratch_blocks(num_stored: int, num_tokens: int, block_size: int) -> int:
    """Blocks of its own for a row of tokens behind a beginning."""
    return -(-(num_stored % block_size + num_tokens) // block_size)


def _with_copies(layer: LayerCache, first_blocks: jax.Array, copied_block: jax.Array) -> LayerCache:
    """Pages in which each row's first scratch block is a copy of the beginning's last one.

    The state in the middle of a block isn't kept with the block, so states stay as they are.
    """
    if not isinstance(layer, LayerPages):
        return layer

    def copied(pool: jax.Array) -> jax.Array:
        return pool.at[first_blocks].set(pool[copied_block], mode="clip")

    return LayerPages(copied(layer.keys), copied(layer.values))


def _distinct(places: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The different places among some, [most] int32, and for each of them which one it is.

    Behind the different places are zeros.
    """
    distinct, index = jnp.unique(places, return_inverse=True, size=most, fill_value=0)
    return distinct, index.reshape(-1)

"""Paged attention against dense attention written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.backends.cache_type import dequantized, quantized_tokens
from engine_worker.compute.backends.kv_layout import KvLayout, LayerPages
from engine_worker.compute.backends.xla.paged_attention import attend_pages
from engine_worker.compute.backends.xla.pages import store_tokens, xla_kv_layout
from engine_worker.compute.models.reference import dense_attention
from engine_worker.compute.models.spec import AttentionSpec
from tests.fakes.tiny_decoder import tiny_attention, tiny_spec

BLOCK_SIZE = 4
GROUP_BLOCKS = 2
TABLE_WIDTH = 8
NUM_BLOCKS = 40
LAYOUT = xla_kv_layout(tiny_spec([None]), np.float32, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
IN_INT8 = xla_kv_layout(tiny_spec([None]), np.int8, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)

Floats = npt.NDArray[np.float32]
_store = jax.jit(store_tokens)


class PagedRows:
    """Rows of random keys and values, scattered over random blocks of a dirty cache."""

    def __init__(
        self, lengths: list[int], *, dirt: float = 7.0, seed: int = 0, layout: KvLayout = LAYOUT
    ) -> None:
        generator = np.random.default_rng(seed)
        shape = (len(lengths), TABLE_WIDTH * BLOCK_SIZE, 2, 8)
        self.lengths = np.array(lengths, np.int32)
        self.keys = generator.standard_normal(shape, np.float32)
        self.values = generator.standard_normal(shape, np.float32)
        self.tables = np.full((len(lengths), TABLE_WIDTH), LAYOUT.padding_blocks[0], np.int32)
        free = generator.permutation(NUM_BLOCKS)
        pages = LayerPages(
            *(jnp.full_like(pool, dirt) for pool in jax.tree.leaves(layout.allocate()[0]))
        )
        positions = np.arange(TABLE_WIDTH * BLOCK_SIZE, dtype=np.int32)
        for row, length in enumerate(lengths):
            num_blocks = -(-length // BLOCK_SIZE)
            self.tables[row, :num_blocks], free = free[:num_blocks], free[num_blocks:]
            # Padding takes all rows to one length, so that one program stores them.
            blocks = self.tables[row, positions // BLOCK_SIZE]
            blocks = np.where(positions < length, blocks, LAYOUT.padding_blocks[0]).astype(np.int32)
            pages = _store(pages, self.keys[row], self.values[row], blocks, positions % BLOCK_SIZE)
        self.pages = pages
        if layout is IN_INT8:
            self.keys, self.values = (
                np.asarray(dequantized(quantized_tokens(jnp.asarray(tokens)), -1))
                for tokens in (self.keys, self.values)
            )

    def attend(
        self, q: Floats, num_queries: int, attention: AttentionSpec, sinks: Floats | None = None
    ) -> Floats:
        """The last `num_queries` positions of every row; q is [B, Q, H, D]."""
        positions = self.lengths[:, None] - num_queries + np.arange(num_queries, dtype=np.int32)
        program = jax.jit(
            partial(
                attend_pages, attention=attention, group_blocks=GROUP_BLOCKS, sinks=_array(sinks)
            )
        )
        return np.asarray(program(q, self.pages, self.tables, self.lengths, positions))

    def expected(
        self, q: Floats, num_queries: int, attention: AttentionSpec, sinks: Floats | None = None
    ) -> Floats:
        dense = jax.jit(partial(dense_attention, attention=attention, sinks=_array(sinks)))
        rows = []
        for row, length in enumerate(self.lengths):
            positions = np.arange(length - num_queries, length, dtype=np.int32)
            rows.append(np.asarray(dense(q[row], self.keys[row], self.values[row], positions)))
        return np.stack(rows)


def _array(numbers: Floats | None) -> jax.Array | None:
    return None if numbers is None else jnp.asarray(numbers)


def random_queries(num_rows: int, num_queries: int) -> Floats:
    generator = np.random.default_rng(9)
    return generator.standard_normal((num_rows, num_queries, 4, 8), np.float32)


@pytest.mark.parametrize("window", [None, 3, 11])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_decode_rows_of_ragged_lengths_match_dense_attention(
    window: int | None, softcap: float | None
) -> None:
    attention = tiny_attention(window, softcap)
    rows = PagedRows([1, 4, 9, 30])
    q = random_queries(4, 1)
    np.testing.assert_allclose(
        rows.attend(q, 1, attention), rows.expected(q, 1, attention), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("window", [None, 5])
def test_a_chunk_after_a_stored_prefix_matches_dense_attention(window: int | None) -> None:
    attention = tiny_attention(window)
    rows = PagedRows([27])
    q = random_queries(1, 13)
    np.testing.assert_allclose(
        rows.attend(q, 13, attention), rows.expected(q, 13, attention), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("window", [None, 5])
def test_int8_pages_are_attended_to_as_what_they_hold_and_nothing_behind_them_is_seen(
    window: int | None,
) -> None:
    """The dirt is bytes that make a scale which is no number."""
    attention = tiny_attention(window)
    rows = PagedRows([3, 16, 27], dirt=-1, layout=IN_INT8)
    q = random_queries(3, 2)
    np.testing.assert_allclose(
        rows.attend(q, 2, attention), rows.expected(q, 2, attention), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("num_queries", [1, 3])
def test_sinks_take_their_share_of_each_head(num_queries: int) -> None:
    attention, q = tiny_attention(window=11), random_queries(3, num_queries)
    rows, sinks = PagedRows([4, 9, 30]), np.asarray([-1.0, 0.5, 2.0, 6.0], np.float32)
    found = rows.attend(q, num_queries, attention, sinks)
    np.testing.assert_allclose(
        found, rows.expected(q, num_queries, attention, sinks), rtol=1e-5, atol=1e-5
    )
    without = rows.attend(q, num_queries, attention)
    shares = np.abs(found).mean(axis=(0, 1, 3)) / np.abs(without).mean(axis=(0, 1, 3))
    assert (np.diff(shares) < 0).all()


def test_what_a_block_held_before_does_not_spread_even_if_it_is_nan() -> None:
    attention = tiny_attention()
    q = random_queries(3, 1)
    clean = PagedRows([2, 7, 17], dirt=0.0).attend(q, 1, attention)
    dirty = PagedRows([2, 7, 17], dirt=np.nan).attend(q, 1, attention)
    np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("window", [None, 6])
def test_a_row_has_the_same_bits_beside_any_neighbours(window: int | None) -> None:
    attention = tiny_attention(window)
    q = random_queries(3, 1)
    rows = PagedRows([5, 9, 31])
    beside_long = rows.attend(q, 1, attention)
    rows.lengths = np.array([5, 9, 0], np.int32)
    beside_empty = rows.attend(q, 1, attention)
    np.testing.assert_array_equal(beside_long[:2], beside_empty[:2])

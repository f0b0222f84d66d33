"""Program shapes, and the vector that carries a step to the device."""

import jax
import numpy as np
import pytest

from engine_worker.compute.runner.buckets import Bucket, choose_buckets
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.core.choice.batch import RowSampling, RowWork


def work(**changes: object) -> RowWork:
    fields: dict[str, object] = {
        "slot": 1,
        "token_ids": (7, 8, 9),
        "start": 5,
        "block_ids": (4, 2),
        "sample": True,
        "sampling": RowSampling(),
    }
    return RowWork(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("max_num_seqs", "min_rows", "rows"),
    [(32, 2, [2, 4, 8, 16, 32]), (20, 1, [1, 2, 4, 8, 16, 20]), (1, 2, [2]), (1, 1, [1])],
)
def test_decode_buckets_double_up_to_the_slots(
    max_num_seqs: int, min_rows: int, rows: list[int]
) -> None:
    buckets = choose_buckets(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=512,
        min_rows=min_rows,
        deterministic=False,
    )
    assert [bucket.num_rows for bucket in buckets.decode] == rows
    for num_rows in range(1, max_num_seqs + 1):
        assert buckets.for_decode(num_rows)[0].num_rows >= num_rows
    for bucket in buckets.decode:
        sampler_rows = buckets.sampler_rows_for(bucket.num_rows)
        assert sampler_rows in (bucket.num_rows, 2 * bucket.num_rows, max_num_seqs)
    assert len(buckets.sampler_rows) == -(-len(rows) // 2)


@pytest.mark.parametrize(
    ("max_num_seqs", "max_tokens", "rows"),
    [(1, 512, [2, 4, 8]), (1, 4, [2, 4, 8]), (6, 512, [2, 4, 8]), (20, 512, [2, 4, 8, 16, 20])],
)
def test_few_requests_have_room_for_drafts(
    max_num_seqs: int, max_tokens: int, rows: list[int]
) -> None:
    buckets = choose_buckets(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_tokens,
        min_rows=2,
        deterministic=False,
        speculates=True,
    )
    assert [bucket.num_rows for bucket in buckets.decode] == rows


@pytest.mark.parametrize(
    ("max_tokens", "chunks"),
    [(512, [32, 128, 512]), (4096, [32, 128, 512]), (100, [32, 100]), (1, [2])],
)
def test_prefill_buckets_end_at_the_token_budget(max_tokens: int, chunks: list[int]) -> None:
    buckets = choose_buckets(
        max_num_seqs=4, max_num_batched_tokens=max_tokens, min_rows=2, deterministic=False
    )
    assert [bucket.num_queries for bucket in buckets.prefill] == chunks
    assert buckets.prefill_chunk_size == chunks[-1]
    assert buckets.for_prefill(chunks[-1])[0].num_queries == chunks[-1]


def test_the_deterministic_mode_has_one_shape() -> None:
    buckets = choose_buckets(
        max_num_seqs=64, max_num_batched_tokens=512, min_rows=1, deterministic=True
    )
    assert len(buckets.all) == 1


def test_a_packed_decode_row_is_unpacked_as_it_was_and_padding_does_nothing() -> None:
    layout = PackedLayout(Bucket(4, 1), table_width=6, num_slots=3, padding_blocks=(99,))
    sampling = RowSampling(
        temperature=0.7,
        top_k=11,
        top_p=0.9,
        min_p=0.25,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        seed=0xFEDCBA9876543210,
        choice=3,
    )
    rows = [work(), work(slot=2, token_ids=(33,), start=10, sampling=sampling)]
    rows[0] = work(token_ids=(7,), sample=False)
    inputs = jax.tree.map(np.asarray, layout.unpack(jax.numpy.asarray(layout.pack(rows))))
    assert inputs.token_ids[:, 0].tolist() == [7, 33, 0, 0]
    assert inputs.positions[:, 0].tolist() == [5, 10, 0, 0]
    assert inputs.is_token[:, 0].tolist() == [True, True, False, False]
    assert inputs.num_stored.tolist() == [6, 11, 0, 0]
    assert inputs.block_tables[0][1].tolist() == [4, 2, 99, 99, 99, 99]
    assert inputs.block_tables[0][3].tolist() == [99] * 6
    chosen = inputs.sampling
    assert chosen.slots.tolist() == [3, 2, 3, 3]
    assert chosen.sampled.tolist() == [False, True, False, False]
    assert chosen.positions[1] == 11
    assert (chosen.seeds_high[1], chosen.seeds_low[1]) == (0xFEDCBA98, 0x76543210)
    assert (chosen.choices[1], chosen.top_ks[1]) == (3, 11)
    assert chosen.temperatures.tolist() == [0.0, np.float32(0.7), 0.0, 0.0]
    assert chosen.top_ps.tolist() == [1.0, np.float32(0.9), 1.0, 1.0]
    assert chosen.log_min_ps.tolist() == [-np.inf, np.float32(np.log(0.25)), -np.inf, -np.inf]
    assert chosen.presence_penalties.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert chosen.frequency_penalties.tolist() == [0.0, -0.5, 0.0, 0.0]
    assert chosen.repetition_penalties.tolist() == [1.0, 1.25, 1.0, 1.0]


def test_a_packed_chunk_marks_its_tokens() -> None:
    layout = PackedLayout(Bucket(2, 8), table_width=4, num_slots=3, padding_blocks=(99,))
    inputs = jax.tree.map(np.asarray, layout.unpack(jax.numpy.asarray(layout.pack([work()]))))
    assert inputs.token_ids.tolist() == [[7, 8, 9, 0, 0, 0, 0, 0]]
    assert inputs.positions.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert inputs.is_token.sum() == 3
    assert inputs.num_stored.tolist() == [8]
    assert inputs.sampling.sampled.tolist() == [True, False]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1, -1])
def test_any_64_bit_seed_can_be_packed(seed: int) -> None:
    layout = PackedLayout(Bucket(1, 1), table_width=2, num_slots=2, padding_blocks=(9,))
    packed = layout.pack([work(token_ids=(1,), sampling=RowSampling(seed=seed))])
    chosen = layout.unpack(jax.numpy.asarray(packed)).sampling
    assert (int(chosen.seeds_high[0]) << 32) + int(chosen.seeds_low[0]) == seed % 2**64

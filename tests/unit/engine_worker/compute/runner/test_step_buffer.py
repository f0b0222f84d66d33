"""A decode's inputs, written where they changed, are those that are packed afresh."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.limits import RowLimits
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.compute.runner.step_buffer import StepBuffer
from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK, CacheGroup

LAYOUT = PackedLayout(Bucket(4, 1), table_width=6, num_slots=4, padding_blocks=(99,))
SAMPLINGS = (RowSampling(), RowSampling(temperature=0.5, seed=7, min_p=0.1), RowSampling(top_k=3))
STOPS = ((), (5,), (1, 2, 3))


@given(st.data())
def test_a_kept_vector_is_the_one_that_is_packed_afresh(data: st.DataObject) -> None:
    buffer = StepBuffer(LAYOUT)
    tables: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        rows = data.draw(rows_of(tables))
        apart = data.draw(st.sets(st.integers(0, 3)))
        packed = buffer.pack(rows, apart)
        assert np.array_equal(packed, LAYOUT.pack(rows, apart))
        packed[:] = -7  # whoever has it may do with it what it likes


@st.composite
def rows_of(draw: st.DrawFn, tables: dict[int, list[int]]) -> list[RowWork]:
    """Rows of one step: some stay as they were, some move, grow, change or are gone."""
    rows = []
    for slot in draw(st.permutations(range(4)))[: draw(st.integers(0, 4))]:
        table = tables.setdefault(slot, [slot])
        change = draw(st.sampled_from(["nothing", "grows", "another"]))
        if change == "grows" and len(table) < LAYOUT.table_width:
            table.append(draw(st.integers(0, 98)))
        elif change == "another":
            table = tables[slot] = draw(st.lists(st.integers(0, 98), min_size=1, max_size=6))
        rows.append(
            RowWork(
                slot,
                (draw(st.integers(-1, 50)),),
                draw(st.integers(0, 30)),
                table,
                draw(st.booleans()),
                draw(st.sampled_from(SAMPLINGS)),
                max_new_tokens=draw(st.integers(1, 3)),
                stop_token_ids=draw(st.sampled_from(STOPS)),
            )
        )
    return rows


class CountedIds(list[int]):
    """A list of block ids that counts how many of them are read."""

    num_read = 0

    def __getitem__(self, index: object) -> object:  # type: ignore[override]
        part = super().__getitem__(index)  # type: ignore[call-overload]
        self.num_read += len(part) if isinstance(index, slice) else 1
        return part

    def __iter__(self) -> object:  # type: ignore[override]
        self.num_read += len(self)
        return super().__iter__()


def test_a_step_reads_one_block_of_a_context_that_it_knows() -> None:
    layout = PackedLayout(Bucket(1, 1), table_width=256, num_slots=1, padding_blocks=(999,))
    buffer, limits = StepBuffer(layout), RowLimits(1, 1, 1, 8192, (CacheGroup(999),), 32, 256)
    blocks = CountedIds(range(200))

    def step(start: int) -> None:
        row = RowWork(0, (1,), start, blocks, True, RowSampling())
        limits.check(row)
        buffer.pack([row])

    step(6000)
    blocks.num_read = 0
    for start in range(6001, 6010):
        step(start)
    assert blocks.num_read == 9  # in each step whether the first one was freed
    blocks.append(300)
    step(6010)
    assert blocks.num_read == 9 + 3  # and the new one, by the check and by the vector


def test_blocks_that_were_freed_are_the_padding_block_from_then_on() -> None:
    layout = PackedLayout(Bucket(1, 1), table_width=8, num_slots=1, padding_blocks=(99, 77))
    buffer = StepBuffer(layout)
    blocks, window_blocks = [5, 6, 7], [1, 2, 3]

    def tables(start: int) -> list[list[int]]:
        row = RowWork(0, (1,), start, blocks, True, RowSampling(), window_block_ids=window_blocks)
        packed = buffer.pack([row])
        np.testing.assert_array_equal(packed, layout.pack([row]))
        return [table[0][:4].tolist() for table in layout.parts(packed)[3]]

    assert tables(90) == [[5, 6, 7, 99], [1, 2, 3, 77]]
    window_blocks[0] = NO_BLOCK
    assert tables(91) == [[5, 6, 7, 99], [77, 2, 3, 77]]
    blocks.append(8)
    window_blocks[1] = NO_BLOCK
    window_blocks.append(4)
    assert tables(92) == [[5, 6, 7, 8], [77, 77, 3, 4]]
    window_blocks = [NO_BLOCK, 6, 1, 4]
    assert tables(93) == [[5, 6, 7, 8], [77, 6, 1, 4]]


def test_a_row_whose_window_lost_a_block_is_refused() -> None:
    limits = RowLimits(1, 1, 1, 8192, (CacheGroup(9, reach=40),), block_size=32, table_width=256)
    limits.check(RowWork(0, (1,), 103, [NO_BLOCK, NO_BLOCK, 3, 4], True, RowSampling()))
    with pytest.raises(ValueError, match="block 1 of a row was freed, but is still seen"):
        limits.check(RowWork(0, (1,), 102, [NO_BLOCK, NO_BLOCK, 3, 4], True, RowSampling()))
    with pytest.raises(ValueError, match="block ids are 0 to 8"):
        limits.check(RowWork(0, (1,), 103, [NO_BLOCK, NO_BLOCK, 3, 9], True, RowSampling()))


def test_a_block_that_is_out_of_range_is_refused_however_late_it_comes() -> None:
    limits = RowLimits(1, 1, 1, 8192, (CacheGroup(10),), block_size=32, table_width=256)
    blocks = [3, 9]
    row = RowWork(0, (1,), 5, blocks, True, RowSampling())
    limits.check(row)
    blocks.append(10)
    for _ in range(2):  # a refused one is not known either
        with pytest.raises(ValueError, match="block ids are 0 to 9"):
            limits.check(row)

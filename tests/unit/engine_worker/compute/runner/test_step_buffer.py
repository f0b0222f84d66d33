"""A decode's inputs, written where they changed, are those that are packed afresh."""

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.limits import RowLimits
from engine_worker.compute.runner.packing import PackedLayout
from engine_worker.compute.runner.step_buffer import StepBuffer
from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK, CacheGroup
from engine_worker.core.choice.token_mask import MaskWords, allow_all

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
        # What is plain is alike in every step in which it is.
        is_plain = draw(st.booleans())
        rows.append(
            RowWork(
                slot,
                (draw(st.integers(-1, 50)),),
                draw(st.integers(0, 30)),
                table,
                is_plain or draw(st.booleans()),
                SAMPLINGS[slot % 3] if is_plain else draw(st.sampled_from(SAMPLINGS)),
                max_new_tokens=draw(st.integers(1, 3)),
                stop_token_ids=STOPS[slot % 3] if is_plain else draw(st.sampled_from(STOPS)),
                is_plain=is_plain,
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


def test_rows_that_move_up_are_not_read_again() -> None:
    layout = PackedLayout(Bucket(4, 1), table_width=64, num_slots=4, padding_blocks=(999,))
    buffer = StepBuffer(layout)
    tables = [CountedIds(range(100 * slot, 100 * slot + 50)) for slot in range(4)]

    def step(*slots: int) -> int:
        """Runs some rows in this order; how many block ids were read."""
        rows = [RowWork(slot, (1,), 900, tables[slot], True, SAMPLINGS[1]) for slot in slots]
        before = sum(table.num_read for table in tables)
        packed = buffer.pack(rows)
        num_read = sum(table.num_read for table in tables) - before
        np.testing.assert_array_equal(packed, layout.pack(rows))
        return num_read

    assert step(0, 1, 2) == 3 * (50 + 1)
    assert step(0, 1, 2) == 3  # in each step whether the first one was freed
    assert step(1, 2) == 2
    assert step(2, 1) == 2
    assert step(3, 1) == 1 + (50 + 1)
    assert step(1) == 1


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


class Matcher:
    """What a grammar's masks are made with; large."""

    def mask(self) -> MaskWords:
        return allow_all(64)


def test_nothing_is_kept_of_a_row_but_what_is_compared_with_the_next() -> None:
    """The grammar of an answer that had ended stayed in memory until its row was needed."""
    matcher = Matcher()
    is_there = weakref.ref(matcher)
    buffer = StepBuffer(LAYOUT)
    buffer.pack([RowWork(0, (1,), 3, [5], True, RowSampling(), pending_mask=matcher.mask)])
    del matcher
    assert is_there() is None


def test_what_may_change_of_a_plain_row_is_checked_in_each_step() -> None:
    limits = RowLimits(4, 4, 8, 60, (CacheGroup(10),), 8, 8)
    blocks = [1, 2]

    def check(start: int, block_ids: list[int] = blocks, **changes: object) -> None:
        row = RowWork(0, (1,), start, block_ids, True, RowSampling(), is_plain=True)
        limits.check(structs.replace(row, **changes))

    check(12)
    for start, changes, message in (
        (13, {"max_new_tokens": 5}, "samples 1 to 4 tokens"),
        (13, {"max_new_tokens": 4}, r"2 blocks do not fit a row of 17 tokens"),
        (60, {}, "ends at 61"),
        (-1, {}, "ends at 0"),
        (13, {"block_ids": [*blocks, 10]}, "block ids are 0 to 9"),
        (13, {"stop_token_ids": tuple(range(9)), "block_ids": [1, 2]}, "at most 8 stop ids"),
        (13, {"slot": 4}, "slot 4 is not below 4"),
        (13, {"pending_mask": lambda: allow_all(64), "block_ids": [1, 2]}, "a plain row is"),
    ):
        with pytest.raises(ValueError, match=message):
            check(start, **changes)
    blocks.append(10)
    with pytest.raises(ValueError, match="block ids are 0 to 9"):
        check(13)
    blocks[-1] = 3
    check(13, max_new_tokens=4)

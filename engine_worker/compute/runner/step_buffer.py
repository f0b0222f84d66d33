"""The inputs of a decode program, kept from step to step: a step writes only what it changes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.packing import PackedLayout, RowField, pack_row_fields
from engine_worker.core.choice.batch import RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK


@dataclass(frozen=True, slots=True)
class _Written:
    """A row as it stands in the vector.

    Attributes:
        row: Whose fields were written.
        num_blocks: How many of its blocks were, for each cache group.
        num_freed: How many of those, from the first on, as freed.
        is_apart: Whether it is sampled apart, if at all.
    """

    row: RowWork
    num_blocks: tuple[int, ...]
    num_freed: tuple[int, ...]
    is_apart: bool

    def goes_on(self, row: RowWork, *, is_apart: bool) -> bool:
        """Whether a row differs in its token, its position, further and freed blocks only."""
        known = self.row
        return (
            row.block_ids is known.block_ids
            and row.window_block_ids is known.window_block_ids
            and all(
                len(table) >= num
                for table, num in zip(row.block_tables, self.num_blocks, strict=False)
            )
            and row.slot == known.slot
            and row.sample == known.sample
            and is_apart == self.is_apart
            and (row.sampling is known.sampling or row.sampling == known.sampling)
            and row.stop_token_ids == known.stop_token_ids
        )

    def stands_for(self, row: RowWork) -> bool:
        """Whether nothing is new in the tables of a row that goes on: most steps fill a block."""
        known = self.row
        return (
            row.block_ids is known.block_ids
            and len(row.block_ids) == self.num_blocks[0]
            and len(self.num_blocks) == 1
            and self.num_freed[0] < len(row.block_ids)
            and row.block_ids[self.num_freed[0]] != NO_BLOCK
        )


class StepBuffer:
    """Packs rows as `PackedLayout.pack` does; the time of it doesn't grow with their contexts.

    Args:
        layout: Of a decode program.
    """

    def __init__(self, layout: PackedLayout) -> None:
        assert not layout.bucket.is_prefill
        self._layout = layout
        self._packed = layout.pack(())
        self._fields, self._limits, self._token_ids, self._tables = layout.parts(self._packed)
        self._padding = self._fields[0].copy(), self._limits[0].copy()
        self._written: list[_Written] = []

    def pack(self, rows: Sequence[RowWork], apart: Collection[int] = ()) -> npt.NDArray[np.int32]:
        """The vector of one call.

        Args:
            rows: At most the program's, of one token each.
            apart: Indices of rows of which hidden states are computed only, whatever they want.

        Returns:
            [num_entries] int32, a copy: the program may still read it when the next is made.
        """
        num_rows = len(rows)
        written: list[_Written] = []
        for index, row in enumerate(rows):
            known = self._written[index] if index < len(self._written) else None
            is_apart = index in apart
            if known is None or not known.goes_on(row, is_apart=is_apart):
                written.append(self._write(index, row, is_apart=is_apart))
            else:
                written.append(self._go_on(index, row, known))
        for index in range(num_rows, len(self._written)):
            self._clear(index)
        self._written = written
        self._fields[:num_rows, RowField.START] = [row.start for row in rows]
        self._limits[:num_rows, 0] = [row.max_new_tokens for row in rows]
        self._token_ids[:num_rows, 0] = [row.token_ids[0] for row in rows]
        return self._packed.copy()

    def _write(self, index: int, row: RowWork, *, is_apart: bool) -> _Written:
        self._clear(index)
        apart = (0,) if is_apart else ()
        (self._fields[index],) = pack_row_fields((row,), 1, self._layout.num_slots, apart)
        self._limits[index, 1 : 1 + len(row.stop_token_ids)] = row.stop_token_ids
        nothing = (0,) * len(self._layout.padding_blocks)
        return self._go_on(index, row, _Written(row, nothing, nothing, is_apart))

    def _go_on(self, index: int, row: RowWork, known: _Written) -> _Written:
        """Writes what is new in a row's tables, at their ends and behind their windows."""
        if known.stands_for(row):
            return known
        num_blocks, num_freed = list(known.num_blocks), list(known.num_freed)
        for group, padding_block in enumerate(self._layout.padding_blocks):
            table, block_ids = self._tables[group, index], row.block_tables[group]
            if len(block_ids) > num_blocks[group]:
                new = slice(num_blocks[group], len(block_ids))
                table[new] = block_ids[new]
                num_blocks[group] = len(block_ids)
            first = end = num_freed[group]
            while end < len(block_ids) and block_ids[end] == NO_BLOCK:
                end += 1
            table[first:end] = padding_block
            num_freed[group] = end
        return _Written(row, tuple(num_blocks), tuple(num_freed), known.is_apart)

    def _clear(self, index: int) -> None:
        self._fields[index], self._limits[index] = self._padding
        self._token_ids[index] = 0
        for group, padding_block in enumerate(self._layout.padding_blocks):
            self._tables[group, index] = padding_block

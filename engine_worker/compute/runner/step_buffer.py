"""The inputs of a decode program, kept from step to step: a step writes only what it changes."""

from collections.abc import Collection, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import structs

from engine_worker.compute.runner.packing import PackedLayout, RowField, pack_row_fields
from engine_worker.core.choice.batch import RowSampling, RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK


class _Written(msgspec.Struct, frozen=True):
    """A row as it stands in the vector; not the row itself, which knows masks of ended choices.

    Attributes:
        block_ids: Of the row, as the next.
        window_block_ids: In the second cache group.
        num_blocks: How many of its blocks were written, for each cache group.
        num_freed: How many of those, from the first on, as freed.
        is_apart: Whether it is sampled apart, if at all.
        is_plain: See `RowWork`.
    """

    slot: int
    sample: bool
    sampling: RowSampling
    stop_token_ids: tuple[int, ...]
    block_ids: Sequence[int]
    window_block_ids: Sequence[int]
    num_blocks: tuple[int, ...]
    num_freed: tuple[int, ...]
    is_apart: bool
    is_plain: bool

    def goes_on(self, row: RowWork, *, is_apart: bool) -> bool:
        """Whether a row differs in its token, its position, further and freed blocks only."""
        if row.is_plain and self.is_plain:
            return row.block_ids is self.block_ids and is_apart == self.is_apart
        return (
            row.block_ids is self.block_ids
            and row.window_block_ids is self.window_block_ids
            and row.slot == self.slot
            and row.sample == self.sample
            and is_apart == self.is_apart
            and (row.sampling is self.sampling or row.sampling == self.sampling)
            and row.stop_token_ids == self.stop_token_ids
            and len(row.block_ids) >= self.num_blocks[0]
            and (len(self.num_blocks) == 1 or len(row.window_block_ids) >= self.num_blocks[1])
        )

    def stands_for(self, row: RowWork) -> bool:
        """Whether nothing is new in the tables of a row that goes on: most steps fill a block."""
        block_ids, first = row.block_ids, self.num_freed[0]
        return (
            len(self.num_blocks) == 1
            and len(block_ids) == self.num_blocks[0]
            and first < len(block_ids)
            and block_ids[first] != NO_BLOCK
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
        for index, (row, known) in enumerate(zip(rows, self._known(rows), strict=True)):
            is_apart = index in apart
            if known is None or not known.goes_on(row, is_apart=is_apart):
                written.append(self._write(index, row, is_apart=is_apart))
            elif known.stands_for(row):
                written.append(known)
            else:
                written.append(self._go_on(index, row, known))
        for index in range(num_rows, len(self._written)):
            self._clear(index)
        self._written = written
        self._fields[:num_rows, RowField.START] = [row.start for row in rows]
        self._limits[:num_rows, 0] = [row.max_new_tokens for row in rows]
        self._token_ids[:num_rows, 0] = [row.token_ids[0] for row in rows]
        return self._packed.copy()

    def _known(self, rows: Sequence[RowWork]) -> Sequence[_Written | None]:
        """What is written of each row's slot, brought to where the row stands now.

        When a row ends, all behind it move up.
        """
        slots, known_slots = [row.slot for row in rows], [known.slot for known in self._written]
        num_rows, num_known = len(slots), len(known_slots)
        if slots == known_slots[:num_rows]:
            return self._written[:num_rows]
        index_of = {slot: index for index, slot in enumerate(known_slots)}
        sources = [index_of.get(slot, index) for index, slot in enumerate(slots)]
        for part in (self._fields, self._limits, self._tables.swapaxes(0, 1)):
            part[:num_rows] = part[sources]
        return [self._written[source] if source < num_known else None for source in sources]

    def _write(self, index: int, row: RowWork, *, is_apart: bool) -> _Written:
        self._clear(index)
        apart = (0,) if is_apart else ()
        (self._fields[index],) = pack_row_fields((row,), 1, self._layout.num_slots, apart)
        self._limits[index, 1 : 1 + len(row.stop_token_ids)] = row.stop_token_ids
        nothing = (0,) * len(self._layout.padding_blocks)
        begun = _Written(
            row.slot,
            row.sample,
            row.sampling,
            row.stop_token_ids,
            row.block_ids,
            row.window_block_ids,
            num_blocks=nothing,
            num_freed=nothing,
            is_apart=is_apart,
            is_plain=row.is_plain,
        )
        return self._go_on(index, row, begun)

    def _go_on(self, index: int, row: RowWork, known: _Written) -> _Written:
        """Writes what is new in a row's tables, at their ends and behind their windows."""
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
        return structs.replace(known, num_blocks=tuple(num_blocks), num_freed=tuple(num_freed))

    def _clear(self, index: int) -> None:
        self._fields[index], self._limits[index] = self._padding
        self._token_ids[index] = 0
        for group, padding_block in enumerate(self._layout.padding_blocks):
            self._tables[group, index] = padding_block

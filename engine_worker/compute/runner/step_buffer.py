"""The inputs of a decode program, kept from step to step: a step writes only what it changes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.packing import PackedLayout, RowField, pack_row_fields
from engine_worker.core.choice.batch import RowWork


@dataclass(frozen=True, slots=True)
class _Written:
    """A row as it stands in the vector, and how many of its blocks do."""

    row: RowWork
    num_blocks: int
    samples: bool

    def goes_on(self, row: RowWork, *, samples: bool) -> bool:
        """Whether a row differs in its token, its position and further blocks only."""
        known = self.row
        return (
            row.block_ids is known.block_ids
            and len(row.block_ids) >= self.num_blocks
            and row.slot == known.slot
            and row.sample == known.sample
            and samples == self.samples
            and (row.sampling is known.sampling or row.sampling == known.sampling)
            and row.stop_token_ids == known.stop_token_ids
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

    def pack(self, rows: Sequence[RowWork], *, samples: bool = True) -> npt.NDArray[np.int32]:
        """The vector of one call.

        Args:
            rows: At most the program's, of one token each.
            samples: False computes hidden states only, whatever the rows want.

        Returns:
            [num_entries] int32, a copy: the program may still read it when the next is made.
        """
        num_rows = len(rows)
        written: list[_Written] = []
        for index, row in enumerate(rows):
            known = self._written[index] if index < len(self._written) else None
            num_blocks = len(row.block_ids)
            if known is None or not known.goes_on(row, samples=samples):
                self._write(index, row, samples=samples)
            elif num_blocks > known.num_blocks:
                new = slice(known.num_blocks, num_blocks)
                self._tables[index, new] = row.block_ids[new]
            else:
                written.append(known)
                continue
            written.append(_Written(row, num_blocks, samples))
        for index in range(num_rows, len(self._written)):
            self._clear(index)
        self._written = written
        self._fields[:num_rows, RowField.START] = [row.start for row in rows]
        self._limits[:num_rows, 0] = [row.max_new_tokens for row in rows]
        self._token_ids[:num_rows, 0] = [row.token_ids[0] for row in rows]
        return self._packed.copy()

    def _write(self, index: int, row: RowWork, *, samples: bool) -> None:
        self._clear(index)
        (self._fields[index],) = pack_row_fields((row,), 1, self._layout.num_slots, samples=samples)
        self._limits[index, 1 : 1 + len(row.stop_token_ids)] = row.stop_token_ids
        self._tables[index, : len(row.block_ids)] = row.block_ids

    def _clear(self, index: int) -> None:
        self._fields[index], self._limits[index] = self._padding
        self._token_ids[index] = 0
        self._tables[index] = self._layout.padding_block

"""Begins the step after this one while this one's tokens are on their way to the host.

An accelerator would idle while the host reads tokens, tells them and plans the next step. But most
rows of a step decode in the next one too, and the device has their tokens. So their next step is
begun at once. The host then asks for what it wants, as always: rows that were begun are taken from
there, and others are computed by themselves and begun together with them the next time. A row that
nobody asks for is dropped. What was computed for it lies behind its end, in blocks that it had when
it was begun, and whoever gets these blocks writes later, since a device works in order. Conversely,
what was begun is worth nothing once anything else wrote to the blocks or the slot of its row.

How a row is sampled may depend on its token, which only the host knows: a grammar allows others
then. Of such rows only the hidden state is begun, from which the full sampler goes on once they are
asked for. So it is for rows with penalties, whose counts a dropped step would spoil.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import msgspec
from msgspec import structs

from engine_worker.compute.runner.packing import LAST_TOKEN
from engine_worker.compute.runner.programs import ProgramOutput
from engine_worker.core.choice.batch import RowSampling, RowWork


class _BegunRow(msgspec.Struct, frozen=True):
    """A row as it was begun; not the row itself, which knows masks of choices that have ended.

    Attributes:
        column: In the program.
        start: Its position.
        token_id: Its token, which only the device knew.
        is_apart: Whether it is still to be sampled.
        block_tables: Its own, which may have grown since.
        num_blocks: How long these were.
    """

    column: int
    start: int
    token_id: int
    is_apart: bool
    sampling: RowSampling
    block_tables: tuple[Sequence[int], Sequence[int]]
    num_blocks: tuple[int, ...]

    def is_wanted(self, row: RowWork) -> bool:
        """Whether this is what a row asks for."""
        return (
            tuple(row.token_ids) == (self.token_id,)
            and row.start == self.start
            and row.sample
            and row.max_new_tokens == 1
            and (self.is_apart or not row.needs_full_sampler)
            and (row.sampling is self.sampling or row.sampling == self.sampling)
            and all(
                now is then and len(now) >= num
                for now, then, num in zip(
                    row.block_tables, self.block_tables, self.num_blocks, strict=True
                )
            )
        )


@dataclass(frozen=True, slots=True)
class TakenRows:
    """Rows of a step that were computed ahead.

    Attributes:
        output: Of the program that did.
        indices: Of the rows, as they were asked for.
        columns: Where each stands in the output.
        apart: Those of `indices` that are still to be sampled.
    """

    output: ProgramOutput
    indices: list[int]
    columns: list[int]
    apart: list[int]


class RunAhead:
    """Keeps the step that was begun before it was asked for; at most one.

    Attributes:
        num_taken: Rows that were asked for when they were there.
        num_dropped: Rows that were not.
    """

    def __init__(self) -> None:
        self._begun: dict[int, _BegunRow] = {}
        self._output: ProgramOutput | None = None
        self.num_taken = 0
        self.num_dropped = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was begun."""
        return self._output is None

    def take(self, indices: Sequence[int], rows: Sequence[RowWork]) -> TakenRows | None:
        """What was begun of some rows; whatever else was begun is dropped.

        Args:
            indices: Of the rows in their step.
            rows: That decode one token each, no two of a slot.
        """
        begun, output = self._begun, self._output
        if output is None:
            return None
        taken = TakenRows(output, [], [], [])
        for index, row in zip(indices, rows, strict=True):
            known = begun.get(row.slot)
            if known is not None and known.is_wanted(row):
                taken.indices.append(index)
                taken.columns.append(known.column)
                if known.is_apart:
                    taken.apart.append(index)
                del begun[row.slot]
        self.num_taken += len(taken.indices)
        self.drop()
        return taken if taken.indices else None

    def keep(
        self,
        output: ProgramOutput,
        rows: Sequence[RowWork],
        apart: AbstractSet[int],
        token_ids: Sequence[int],
    ) -> None:
        """Remembers a step that was begun.

        Args:
            output: Of its program.
            rows: As `following` made them.
            apart: Indices of those that the program doesn't sample.
            token_ids: What `LAST_TOKEN` stood for in each.
        """
        self._output = output
        self._begun = {
            row.slot: _BegunRow(
                column,
                row.start,
                token_id,
                column in apart,
                row.sampling,
                row.block_tables,
                tuple(map(len, row.block_tables)),
            )
            for column, (row, token_id) in enumerate(zip(rows, token_ids, strict=True))
        }

    def drop_written(self, block_ids: Sequence[AbstractSet[int]]) -> None:
        """Forgets what was begun if blocks that its rows have were written to since.

        Their choices may have given these blocks up, and be given them again.

        Args:
            block_ids: Of each cache group.
        """
        if any(
            not written.isdisjoint(table)
            for begun in self._begun.values()
            for written, table in zip(block_ids, begun.block_tables, strict=False)
        ):
            self.drop()

    def drop_slot(self, slot: int) -> None:
        """Forgets what was begun of the row that has this slot, which somebody takes now."""
        self.num_dropped += self._begun.pop(slot, None) is not None

    def drop(self) -> None:
        """Forgets what was begun."""
        self.num_dropped += len(self._begun)
        self._begun.clear()
        self._output = None


def following(row: RowWork) -> RowWork:
    """A row's next decode, whose token the device will know; its tables go on growing."""
    return structs.replace(
        row,
        token_ids=(LAST_TOKEN,),
        start=row.start + len(row.token_ids),
        scored_token_ids=(),
    )


def is_sampled_later(row: RowWork) -> bool:
    """Whether a row's next decode is begun without its sample."""
    return row.needs_full_sampler or row.sampling.uses_penalties

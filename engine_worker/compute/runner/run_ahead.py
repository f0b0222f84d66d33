"""Begins the step after this one while this one's tokens are on their way to the host.

An accelerator would idle while the host reads tokens, tells them and plans the next step. But a
step of decodes is mostly followed by one of the same rows, whose tokens the device has. So that one
is begun at once; if the host then wants anything else, it is dropped. What a dropped step wrote
lies behind the end of every row, in blocks that the rows had when it was begun, and whoever gets
these blocks writes later, since a device works in order. Conversely, what was begun is worth
nothing once anything else wrote to the blocks or the slots of its rows.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.packing import LAST_TOKEN
from engine_worker.compute.runner.programs import ProgramOutput
from engine_worker.core.choice.batch import RowWork
from engine_worker.core.choice.cache_group import NO_BLOCK

Step = Callable[[Bucket, Sequence[RowWork]], ProgramOutput]


@dataclass(frozen=True, slots=True)
class _BegunStep:
    bucket: Bucket
    rows: tuple[RowWork, ...]
    """Without their token, which is in `token_ids` once it is on the host."""
    token_ids: npt.NDArray[np.int32]
    output: ProgramOutput


class RunAhead:
    """Keeps the step that was begun before it was asked for; at most one.

    Args:
        step: Dispatches a decode and does not wait for it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._begun: _BegunStep | None = None
        self.num_taken = 0
        self.num_dropped = 0

    def run(self, bucket: Bucket, rows: Sequence[RowWork], *, has_next: bool) -> ProgramOutput:
        """Computes a decode, or takes what was begun of it.

        Args:
            bucket: Of its program.
            rows: What is wanted.
            has_next: Whether to begin the step after it, too; the rows' blocks hold its tokens.

        Returns:
            The output; its tokens are on the host when this returns.
        """
        begun, self._begun = self._begun, None
        if begun is not None and _is_wanted(begun, bucket, rows):
            output = begun.output
            self.num_taken += 1
        else:
            output = self._step(bucket, rows)
            self.num_dropped += begun is not None
        if not has_next:
            return output
        following = tuple(map(_next, rows))
        next_output = self._step(bucket, following)
        # Only this waits.
        token_ids = np.asarray(output.tokens)[0, : len(rows)]
        self._begun = _BegunStep(bucket, following, token_ids, next_output)
        return output

    def drop_written(self, block_ids: Sequence[AbstractSet[int]]) -> None:
        """Forgets what was begun if blocks that its rows have were written to since.

        Their choices may have given these blocks up, and be given them again.

        Args:
            block_ids: Of each cache group.
        """
        begun = self._begun
        if begun is not None and any(
            not written.isdisjoint(table)
            for row in begun.rows
            for written, table in zip(block_ids, row.block_tables, strict=False)
        ):
            self.drop()

    def drop_slot(self, slot: int) -> None:
        """Forgets what was begun if one of its rows has this slot, which somebody takes now."""
        if self._begun is not None and any(row.slot == slot for row in self._begun.rows):
            self.drop()

    def drop(self) -> None:
        """Forgets what was begun: something else comes next."""
        self.num_dropped += self._begun is not None
        self._begun = None


def _next(row: RowWork) -> RowWork:
    """The row one token further; its blocks as they are now."""
    return replace(
        row,
        token_ids=(LAST_TOKEN,),
        start=row.start + 1,
        block_ids=tuple(row.block_ids),
        window_block_ids=tuple(row.window_block_ids),
    )


def _is_wanted(begun: _BegunStep, bucket: Bucket, rows: Sequence[RowWork]) -> bool:
    return (
        begun.bucket == bucket
        and len(begun.rows) == len(rows)
        and all(map(_is_same, begun.rows, begun.token_ids.tolist(), rows))
    )


def _is_same(begun: RowWork, token_id: int, row: RowWork) -> bool:
    return (
        tuple(row.token_ids) == (token_id,)
        and all(map(_goes_on, begun.block_tables, row.block_tables))
        and replace(
            row,
            token_ids=begun.token_ids,
            block_ids=begun.block_ids,
            window_block_ids=begun.window_block_ids,
        )
        == begun
    )


def _goes_on(begun: Sequence[int], block_ids: Sequence[int]) -> bool:
    """Whether a table only grew, or lost blocks that the step begun ahead didn't see either."""
    now = tuple(block_ids[: len(begun)])
    return now == begun or (
        len(now) == len(begun)
        and all(one in (known, NO_BLOCK) for known, one in zip(begun, now, strict=True))
    )

"""Turns the rows of a schedule into work: one token a row, or several by look-ahead or drafts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import structs

from engine_worker.core.choice.batch import ModelRunner, RowWork, StepBatch, StepResult
from engine_worker.core.choice.choice import Choice
from engine_worker.core.decoding.lookahead import Lookahead, extended, num_wanted
from engine_worker.core.decoding.speculation import (
    MAX_DRAFT_TOKENS,
    Speculation,
    SpeculationMode,
)
from engine_worker.core.decoding.step_rows import plain_work, row_work
from engine_worker.core.scheduling.scheduler import ScheduledRow, Scheduler


@dataclass(frozen=True, slots=True)
class _Planned:
    """What is remembered of a step; not its rows, which know masks of choices that have ended."""

    num_rows: int
    num_drafted: int
    has_chunks: bool


class DecodePlanner:
    """Gives each step its form, and learns from how long it took.

    Args:
        runner: Says what a step may hold.
        scheduler: Gives blocks for more tokens than one.
        speculation: Whether rows may draft their next tokens.
        on_drafts: Told how many tokens were drafted in a step, and how many of them were right.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        speculation: SpeculationMode,
        on_drafts: Callable[[int, int], None],
    ) -> None:
        self._scheduler = scheduler
        self._runs_ahead = runner.runs_ahead
        # Where there is a second table, the scheduler knows what there is room for.
        self._block_size = runner.block_size if len(runner.cache_groups) == 1 else 0
        self._lookahead = Lookahead(runner.max_new_tokens)
        # So far back a step can begin again, as behind a wrong draft: recurrent layers keep no
        # more states.
        self._num_droppable = min(MAX_DRAFT_TOKENS, runner.max_draft_tokens)
        self._speculation = Speculation(speculation, runner.decode_rows, self._num_droppable)
        self._on_drafts = on_drafts
        self._planned = _Planned(0, 0, has_chunks=False)

    def batch(self, rows: Sequence[ScheduledRow]) -> StepBatch:
        """What the rows of a step compute."""
        choices = [row.choice for row in rows]
        are_plain = all(row.is_plain for row in rows)
        works = () if are_plain else tuple(map(row_work, rows))
        drafts = self._speculation.drafts(choices, None if are_plain else works)
        if drafts is not None:
            works = tuple(map(self._drafting, choices, works or map(row_work, rows), drafts))
        elif are_plain:
            num = self._lookahead.num_for_all(choices)
            works = tuple([self._plain_work(choice, num) for choice in choices])
        elif (nums := self._lookahead.num_new_tokens(choices, works)) is not None:
            works = tuple(map(self._looking_ahead, choices, works, nums))
        self._planned = _Planned(
            num_rows=len(works),
            num_drafted=0 if drafts is None else sum(len(work.draft_token_ids) for work in works),
            has_chunks=not are_plain and any(len(work.token_ids) > 1 for work in works),
        )
        return StepBatch(works, self._next_rows(choices, works))

    def measure(self, result: StepResult, duration_s: float) -> None:
        """Learn from the step that was planned last.

        Args:
            result: Of the runner.
            duration_s: Of the whole step.
        """
        planned, more = self._planned, result.more_token_ids
        if planned.num_drafted:
            num_right = sum(map(len, more.values()))
            self._speculation.measure(
                planned.num_rows, planned.num_drafted, num_right, 1, duration_s
            )
            self._on_drafts(planned.num_drafted, num_right)
        elif not planned.has_chunks:
            num_turns = 1 + max(map(len, more.values()), default=0)
            self._lookahead.measure(num_turns, duration_s)
            self._speculation.measure(planned.num_rows, 0, 0, num_turns, duration_s)

    def _next_rows(self, choices: Sequence[Choice], works: Sequence[RowWork]) -> tuple[int, ...]:
        """Rows that likely have a next token, for which they then have room.

        None where some row's next position depends on what comes: a step would have two programs.
        """
        if not self._runs_ahead or any(
            work.max_new_tokens > 1 or work.draft_token_ids for work in works
        ):
            return ()
        return tuple(
            index
            for index, (choice, work) in enumerate(zip(choices, works, strict=True))
            if work.sample
            and not choice.is_scored
            and num_wanted(choice, num_droppable=1) > 1
            and self._scheduler.reserve(choice, 2) > 1
        )

    def _plain_work(self, choice: Choice, num_new_tokens: int) -> RowWork:
        """A plain decode that computes several tokens, if its own limits allow it."""
        if num_new_tokens > 1:
            end = len(choice.output_token_ids) + num_new_tokens
            num_stored = choice.num_computed_tokens + num_new_tokens
            # As it mostly is, neither a limit nor its blocks end here.
            if (
                end > choice.plain_until
                or end > choice.lease_tokens
                or num_stored > len(choice.block_ids) * self._block_size
            ):
                num_new_tokens = self._num_possible(choice, num_new_tokens)
        return plain_work(choice, num_new_tokens)

    def _looking_ahead(self, choice: Choice, work: RowWork, num_new_tokens: int) -> RowWork:
        num_possible = self._num_possible(choice, num_new_tokens)
        return work if num_possible <= 1 else extended(choice, work, num_possible)

    def _num_possible(self, choice: Choice, num_new_tokens: int) -> int:
        """How many new tokens a row has use and blocks for, which it gets."""
        wanted = min(num_new_tokens, num_wanted(choice, self._num_droppable))
        return 1 if wanted <= 1 else self._scheduler.reserve(choice, wanted)

    def _drafting(self, choice: Choice, work: RowWork, draft: tuple[int, ...]) -> RowWork:
        if not draft:
            return work
        room = self._scheduler.reserve(choice, 1 + len(draft))
        return structs.replace(work, draft_token_ids=draft[: room - 1])

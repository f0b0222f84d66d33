"""Decides which tokens of which choices are computed in the next step; pure policy, no device.

Each step has a budget of prompt tokens. Choices that decode take one token each beside it, so that
a prompt gets on as fast whoever decodes; a step has at most the budget and one token for each slot.
The budget goes to chunks of prompts, first those that were begun, then new ones, each in order of
rank. Where a grammar forced several tokens of an output, all but the first of them count, too; the
first doesn't, so that no prompt brings an output to a stop. When KV blocks run out, the choice that
comes last in that order is preempted: its blocks are released, though they stay cached until
somebody needs them, and what is lost of its tokens, output included, is computed again later.

Blocks come from the pools of one or two cache groups (`CacheGroup`). What a choice of n tokens
needs of a group whose layers see all tokens is known when it is admitted, and taken then. Of a
group behind a window it gets what the window and its next chunk fill, and as it gets on it frees as
many blocks behind the window as it takes before it.

A choice's rank is the step in which it came plus `AGING_STEPS` for each level of priority. So a
choice is overtaken only by more important ones that come within that many steps after it, and
when no more of these come, every choice that isn't paused gets its slot within
`(a + 1) * (max_num_seqs + 1) * max_model_len` steps, with `a` choices ahead of it: the first in
order is never preempted and gets on in each step, and while it waits for room nobody else is let
in.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from engine_worker.core.choice.cache_group import CacheGroup, longest_sequence
from engine_worker.core.choice.choice import Choice, ChoiceStatus
from engine_worker.core.scheduling.block_pool import BlockPool
from engine_worker.core.scheduling.group_blocks import GroupBlocks
from engine_worker.core.scheduling.prefix_cache import FoundBlocks, PrefixCache
from engine_worker.core.scheduling.waiting_list import WaitingList
from engine_worker.errors import ContextLengthError

AGING_STEPS = 256
"""Steps of waiting that make up for one level of priority."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a step may hold.

    Attributes:
        max_num_seqs: Choices that run at a time; also the number of slots.
        max_num_batched_tokens: Tokens of prompts in one step.
        prefill_chunk_size: Tokens of one choice in one step.
        max_model_len: Prompt and output of one choice; no more than all KV blocks hold (see
            `longest_sequence`), so that a choice that runs alone always gets on.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_chunk_size: int
    max_model_len: int


class ScheduledRow(msgspec.Struct, frozen=True):
    """The next `num_tokens` tokens of a choice, from its `num_computed_tokens` on.

    Attributes:
        is_plain: It is a decode, and the token that follows is plain, see `Choice.plain_until`.
    """

    choice: Choice
    num_tokens: int
    is_plain: bool = False

    @property
    def samples(self) -> bool:
        """Whether a new token follows from this row."""
        return self.num_tokens == self.choice.num_uncomputed_tokens


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step.

    Attributes:
        rows: Decodes first, then chunks of prompts.
        admitted: Choices that took a slot for this step.
    """

    rows: tuple[ScheduledRow, ...]
    admitted: tuple[Choice, ...]


class Scheduler:
    """Owns the waiting and running choices, their slots and their blocks.

    It is long because slots, blocks and order have one invariant, which a split would spread.

    Args:
        limits: Of a step.
        pools: Of blocks, one for each cache group.
        reaches: Of each group, see `CacheGroup`; by default layers see all tokens.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        pools: Sequence[BlockPool],
        reaches: Sequence[int | None] = (None,),
    ) -> None:
        assert limits.max_num_batched_tokens > 0
        self._limits = limits
        self._groups = tuple(
            GroupBlocks(pool, reach, index, limits.prefill_chunk_size)
            for index, (pool, reach) in enumerate(zip(pools, reaches, strict=True))
        )
        groups = tuple(map(CacheGroup, (pool.num_blocks for pool in pools), reaches))
        longest = longest_sequence(groups, pools[0].block_size, limits.prefill_chunk_size)
        assert longest is None or limits.max_model_len <= longest
        self._sliding = tuple(group for group in self._groups if group.has_window)
        self._block_size = pools[0].block_size
        self._waiting = WaitingList()
        self._cache = PrefixCache(self._groups, self._waiting.push)
        self._running: list[Choice] = []
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._num_steps = 0
        self.num_preemptions = 0

    @property
    def num_runnable(self) -> int:
        """Choices with a slot that will run in the next step."""
        return sum(len(one.output_token_ids) < one.lease_tokens for one in self._running)

    @property
    def num_unfinished(self) -> int:
        """Choices that have not finished, wherever they are."""
        return len(self._running) + len(self._waiting) + self._cache.num_parked

    def choices(self) -> Iterator[Choice]:
        """All unfinished choices."""
        yield from self._running
        yield from self._waiting
        yield from self._cache.parked()

    def has_work(self) -> bool:
        """Whether `schedule` would return rows: somebody is not paused."""
        # Who waits for another one's block has that one running.
        return self._waiting.num_ready > 0 or any(not one.is_paused for one in self._running)

    def add(self, choice: Choice) -> None:
        """Take a choice into the waiting list.

        Raises:
            ContextLengthError: It could never run, not even alone; both numbers are named.
        """
        num_tokens = choice.num_prompt_tokens + max(1, choice.num_output_tokens)
        if num_tokens > self._limits.max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self._limits.max_model_len} tokens, but"
                f" the request has {num_tokens} tokens with its first output token."
            )
        choice.rank = self._num_steps + choice.priority * AGING_STEPS
        choice.status = ChoiceStatus.WAITING
        self._waiting.push(choice)

    def extend(self, choice: Choice, lease_tokens: int) -> None:
        """Raise a choice's lease; a smaller one changes nothing."""
        choice.lease_tokens = max(choice.lease_tokens, lease_tokens)
        self._waiting.on_extended(choice)

    def reserve(self, choice: Choice, num_new_tokens: int) -> int:
        """Take blocks for several tokens of a scheduled decode, as far as some are free.

        Nobody is preempted for them, and the blocks kept for new choices stay free.

        Args:
            choice: Has the block of its next token already.
            num_new_tokens: How many tokens are wanted.

        Returns:
            How many tokens its blocks now have room for, at least 1.
        """
        num_known = len(choice.prompt_token_ids) + len(choice.output_token_ids) - 1
        room = num_new_tokens
        for group in self._groups:
            table = group.table(choice)
            num_lacking = num_known + room - len(table) * self._block_size
            if num_lacking > 0:
                wanted = group.pool.num_blocks_for(num_lacking)
                group.extend(choice, min(wanted, group.num_spare))
                room = min(room, len(table) * self._block_size - num_known)
        return room

    def advance(self, row: ScheduledRow) -> None:
        """The tokens of a row were computed; called before anything is added to its output."""
        choice = row.choice
        choice.num_computed_tokens += row.num_tokens
        if choice.num_computed_tokens // self._block_size > choice.num_named_blocks:
            self._cache.commit(choice)
        for group in self._sliding:
            group.slide(choice)

    def finish(self, choice: Choice) -> None:
        """Forget a choice and release what it holds; what it computed stays cached."""
        if choice.slot is not None:
            self._running.remove(choice)
            self._vacate(choice)
        elif choice.awaited_block is not None:
            self._cache.unpark(choice)
        else:
            self._waiting.finish(choice)
        choice.status = ChoiceStatus.FINISHED

    def borrow(self, choice: Choice, num_least: int, num_most: int) -> tuple[list[int], ...]:
        """Blocks beside those of a running choice, for a moment; `give_back` must follow at once.

        Choices that come after it give way for the least, if that helps; what is free is taken up
        to the most.

        Returns:
            For each cache group the same number of blocks; nothing at all where only choices before
            this one hold what is needed, or it does itself.
        """
        num_free = min(group.pool.num_free for group in self._groups)
        if num_free < num_least and self._num_lendable(choice) < num_least:
            return ()
        while num_free < num_least:
            self._preempt(self._paused_victim() or self._running[-1])
            num_free = min(group.pool.num_free for group in self._groups)
        borrowed = [group.pool.allocate(min(num_most, num_free)) for group in self._groups]
        return tuple(block_ids for block_ids in borrowed if block_ids is not None)

    def _num_lendable(self, choice: Choice) -> int:
        """Free blocks, of each cache group, once all have given way that may for this choice."""
        behind = [one for one in self._running if one.is_paused or one.order > choice.order]
        return min(group.pool.num_free + len(group.freed_by(behind)) for group in self._groups)

    def give_back(self, borrowed: tuple[list[int], ...]) -> None:
        """What was borrowed is free again."""
        for group, block_ids in zip(self._groups, borrowed, strict=True):
            group.pool.release(block_ids)

    def tables(self, choice: Choice) -> tuple[list[int], ...]:
        """The blocks of a choice in each cache group."""
        return tuple(group.table(choice) for group in self._groups)

    def distrust(self, choice: Choice) -> None:
        """What a choice computed or read is not to be used by others: it gave no numbers."""
        self._cache.distrust(choice)

    def first(self) -> Choice | None:
        """Who gets on whatever others do: the first that runs and isn't paused, else that waits."""
        running = (choice for choice in self._running if not choice.is_paused)
        return next(running, None) or self._waiting.peek()

    def clear_cache(self) -> int:
        """Computed blocks that no choice holds are not used again; how many those were."""
        return sum(group.pool.forget_unused() for group in self._groups)

    def reset(self) -> None:
        """Every running choice starts over from its tokens: the KV cache was lost."""
        while self._running:
            self._preempt(self._running[-1])
        for group in self._groups:
            group.pool.forget_all()

    def schedule(self) -> Schedule:
        """The next step; the caller reports what was computed with `advance`.

        There is at least one row whenever `has_work`, but for prompts whose questions are being
        scored: they keep their slots and have nothing left to compute.
        """
        self._num_steps += 1
        decodes, longer = self._schedule_decodes()
        budget = self._limits.max_num_batched_tokens
        chunks: list[ScheduledRow] = []
        for choice in longer:
            if choice.slot is not None:
                budget -= self._add_chunk(choice, budget, chunks)
        admitted: list[Choice] = []
        while budget > 0 and (admitted_choice := self._admit_next()) is not None:
            admitted.append(admitted_choice)
            budget -= self._add_chunk(admitted_choice, budget, chunks)
        return Schedule(rows=(*decodes, *chunks), admitted=tuple(admitted))

    def _schedule_decodes(self) -> tuple[list[ScheduledRow], list[Choice]]:
        """Rows of one token, and choices with more of them, who may give way to later ones."""
        rows: list[ScheduledRow] = []
        longer: list[Choice] = []
        has_one_group, block_size = len(self._groups) == 1, self._block_size
        # Best first: a victim is always behind the choice that needs its blocks.
        for choice in tuple(self._running):
            num_output_tokens = len(choice.output_token_ids)
            if choice.slot is None or num_output_tokens >= choice.lease_tokens:  # it is paused
                continue
            num_tokens = len(choice.prompt_token_ids) + num_output_tokens
            has_blocks = has_one_group and len(choice.block_ids) * block_size >= num_tokens
            # More than one token waits where a grammar forced some; a prompt has its blocks, but
            # behind a window another one may have taken what it freed.
            if not (has_blocks or self._grow(choice)):
                continue
            num_uncomputed = num_tokens - choice.num_computed_tokens
            if num_uncomputed == 1:
                rows.append(ScheduledRow(choice, 1, num_output_tokens < choice.plain_until))
            elif num_uncomputed > 1:
                longer.append(choice)
        return rows, longer

    def _grow(self, choice: Choice) -> bool:
        """Give a running choice the blocks of its next step; False when it was preempted."""
        for group in self._groups:
            num_missing = group.num_missing(choice)
            while num_missing > 0 and not group.extend(choice, num_missing):
                victim = self._paused_victim() or self._running[-1]
                self._preempt(victim)
                if victim is choice:
                    return False
        return True

    def _add_chunk(self, choice: Choice, budget: int, rows: list[ScheduledRow]) -> int:
        """Add the next tokens of a choice that has several; how many of the budget they take."""
        num_free = int(choice.num_computed_tokens >= choice.num_prompt_tokens)
        num_tokens = min(
            choice.num_uncomputed_tokens, budget + num_free, self._limits.prefill_chunk_size
        )
        if num_tokens:
            rows.append(ScheduledRow(choice, num_tokens))
        return max(0, num_tokens - num_free)

    def _admit_next(self) -> Choice | None:
        """Move the first choice that can run into a slot, if there is room for it.

        All blocks of its known tokens are taken at once, behind a window as many as it needs at a
        time, so that prompts that were begun hardly ever wait for each other's blocks. A choice
        that waits for another one's block lets the next one go first; one that lacks room does not,
        or it might wait forever.
        """
        while self._waiting.num_ready > 0 and self._free_a_slot():
            choice = self._waiting.pop()
            found = self._cache.find(choice)
            awaited = self._cache.awaited(choice, found.num_blocks)
            if awaited is not None:
                self._cache.park(choice, awaited)
            elif self._make_room(choice, found):
                self._admit(choice, found)
                return choice
            else:
                self._waiting.push(choice)
                return None
        return None

    def _free_a_slot(self) -> bool:
        """Paused choices give way: work that may run goes before work that waits for its lease."""
        if self._free_slots:
            return True
        victim = self._paused_victim()
        if victim is None:
            return False
        self._preempt(victim)
        return True

    def _make_room(self, choice: Choice, found: FoundBlocks) -> bool:
        """Have paused choices give way, but only where that is enough."""
        if self._has_room(choice, found):
            return True
        paused = [one for one in self._running if one.is_paused]
        if not paused or not self._has_room(choice, found, paused):
            return False
        while not self._has_room(choice, found):
            victim = self._paused_victim()
            assert victim is not None, "without any of them there is room"
            self._preempt(victim)
        return True

    def _has_room(self, choice: Choice, found: FoundBlocks, leaving: Sequence[Choice] = ()) -> bool:
        """Whether a choice can be admitted now, or when some that run have left."""
        num_computed = found.num_blocks * self._block_size
        for group, table in zip(self._groups, found.tables, strict=True):
            held, freed = group.held(table), group.freed_by(leaving)
            num_new = group.num_wanted(num_computed, choice.num_tokens) - len(table)
            num_needed = num_new + group.pool.num_free_among(held)
            num_reserved = group.num_reserved if len(self._running) > len(leaving) else 0
            # What was found stays where it is, whoever else leaves it.
            num_free = group.pool.num_free + len(freed.difference(held))
            if num_needed + num_reserved > num_free:
                return False
        return True

    def _admit(self, choice: Choice, found: FoundBlocks) -> None:
        choice.num_computed_tokens = found.num_blocks * self._block_size
        for group, table in zip(self._groups, found.tables, strict=True):
            group.pool.share(group.held(table))
            group.set_table(choice, table)
            has_got = group.extend(choice, group.num_missing(choice))
            assert has_got, "there was room for it"
        if choice.num_cached_tokens is None:
            choice.num_cached_tokens = min(choice.num_computed_tokens, choice.num_prompt_tokens)
        self._cache.begin(choice, found.num_blocks)
        choice.slot = self._free_slots.pop()
        choice.status = ChoiceStatus.RUNNING
        insort(self._running, choice, key=_order)

    def _paused_victim(self) -> Choice | None:
        return next((choice for choice in reversed(self._running) if choice.is_paused), None)

    def _preempt(self, choice: Choice) -> None:
        self._running.remove(choice)
        self._vacate(choice)
        choice.status = ChoiceStatus.PREEMPTED
        self._waiting.push(choice)
        self.num_preemptions += 1

    def _vacate(self, choice: Choice) -> None:
        assert choice.slot is not None
        self._free_slots.append(choice.slot)
        choice.slot = None
        self._cache.end(choice)
        for group in self._groups:
            group.release(choice)
        choice.num_computed_tokens = 0


def _order(choice: Choice) -> tuple[int, int]:
    return choice.order

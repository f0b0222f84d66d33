"""The scheduler against a model: any order of events, with blocks whose contents are checked.

So are the states of recurrent layers, which lie with blocks and in the rings of slots (ADR 50).
"""

import gc
import itertools
import sys
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine_worker.core.choice.batch import RowSampling
from engine_worker.core.choice.cache_group import NO_BLOCK, CacheGroup, most_window_blocks
from engine_worker.core.choice.choice import Choice, ChoiceStatus
from engine_worker.core.scheduling.block_hashes import block_hashes
from engine_worker.core.scheduling.block_pool import BlockPool
from engine_worker.core.scheduling.scheduler import (
    AGING_STEPS,
    Schedule,
    ScheduledRow,
    Scheduler,
    SchedulerLimits,
)
from tests.fakes.recurrent_states import RecurrentStates

NUM_BLOCKS = 10
BLOCK_SIZE = 3
MAX_DRAFT_TOKENS = 4
LIMITS = SchedulerLimits(
    max_num_seqs=3, max_num_batched_tokens=9, prefill_chunk_size=5, max_model_len=24
)
# Few beginnings, so that choices meet in the cache.
PROMPTS = st.builds(
    lambda beginning, length: (*beginning, *(5,) * length),
    st.sampled_from([(1, 2, 3), (1, 2, 4)]),
    st.integers(0, 12),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, steps, extends, aborts and loses the cache; the memory of the blocks is simulated."""

    groups: tuple[CacheGroup, ...] = (CacheGroup(NUM_BLOCKS),)

    def __init__(self) -> None:
        super().__init__()
        self.pools = [BlockPool(group.num_blocks, BLOCK_SIZE) for group in self.groups]
        self.scheduler = Scheduler(LIMITS, self.pools, [group.reach for group in self.groups])
        self.memories = self.empty_memories()
        self.states = RecurrentStates(BLOCK_SIZE, MAX_DRAFT_TOKENS + 2)
        self.choices: list[Choice] = []
        self.num_added = 0
        self.known: set[bytes] = set()

    def empty_memories(self) -> list[list[list[int | None]]]:
        return [[[None] * BLOCK_SIZE for _ in range(group.num_blocks)] for group in self.groups]

    @rule(
        prompt=PROMPTS,
        output=st.sampled_from([[], [], [5], [5, 6, 5]]),
        tenant=st.sampled_from(["a", "a", "a", "b"]),
        priority=st.integers(-1, 1),
        lease=st.sampled_from([0, 2, 50]),
        reads_cache=st.sampled_from([True, True, True, False]),
    )
    def add(self, prompt: tuple[int, ...], output: list[int], lease: int, **fields: Any) -> None:
        tenant = fields.pop("tenant")
        choice = Choice(
            gateway_id="g",
            request_id=str(self.num_added),
            index=0,
            attempt=1,
            prompt_token_ids=prompt,
            sampling=RowSampling(),
            max_output_tokens=LIMITS.max_model_len - len(prompt),
            lease_tokens=lease,
            deadline=1.0,
            arrival=self.num_added,
            cache_salt=tenant,
            output_token_ids=list(output),
            **fields,
        )
        self.num_added += 1
        self.scheduler.add(choice)
        self.choices.append(choice)

    @rule(
        token=st.sampled_from([5, 5, 6]),
        num_steps=st.integers(1, 4),
        lookahead=st.integers(1, 1 + MAX_DRAFT_TOKENS),
        num_right=st.integers(0, 5),
        num_forced=st.sampled_from([0, 0, 3, 12]),
    )
    def step(
        self,
        token: int,
        num_steps: int,
        lookahead: int = 1,
        num_right: int | None = None,
        num_forced: int = 0,
    ) -> None:
        """Steps of several tokens a row; with `num_right` these are drafts, the others wrong.

        After each a grammar forces some tokens upon those that sampled one.
        """
        for _ in range(num_steps):
            had_work = self.scheduler.has_work()
            schedule = self.scheduler.schedule()
            assert bool(schedule.rows) == had_work
            assert all(row.num_tokens > 0 for row in schedule.rows)
            self.check_budget(schedule)
            assert len({row.choice.slot for row in schedule.rows}) == len(schedule.rows)
            rooms = [
                self.scheduler.reserve(row.choice, lookahead) if row.samples else 1
                for row in schedule.rows
            ]
            for row in schedule.rows:
                self.write(row)
            for row, room in zip(schedule.rows, rooms, strict=True):
                self.check_reads(row)
                num_turns = room if row.num_tokens == 1 else 1
                if num_right is not None and num_turns > 1:
                    self.write_draft(row, num_turns - 1)
                    num_turns = min(num_turns, 1 + num_right)
                self.take(row, token, num_turns)
                if row.choice in self.choices and row.choice.num_uncomputed_tokens == 1:
                    self.force(row.choice, num_forced)

    def check_budget(self, schedule: Schedule) -> None:
        """Outputs have one token beside the budget; it is used up before a prompt has to wait."""
        num_spent, is_short = 0, False
        rows = {row.choice: row.num_tokens for row in schedule.rows}
        for choice in self.scheduler.choices():
            if choice.slot is None or choice.is_paused or choice.num_uncomputed_tokens == 0:
                continue
            is_prompt = choice.num_computed_tokens < choice.num_prompt_tokens
            # Only the last token of a prompt that was begun is computed as in decode.
            is_output = not is_prompt or (
                choice.num_uncomputed_tokens == 1 and choice not in schedule.admitted
            )
            num_tokens = rows.get(choice, 0)
            assert num_tokens or not is_output, "an output comes to a stop"
            num_spent += max(0, num_tokens - 1) if is_output else num_tokens
            most = min(choice.num_uncomputed_tokens, LIMITS.prefill_chunk_size)
            is_short = is_short or num_tokens < most
        assert num_spent <= LIMITS.max_num_batched_tokens
        assert not is_short or num_spent == LIMITS.max_num_batched_tokens

    def force(self, choice: Choice, num_tokens: int) -> None:
        """As the engine does when a grammar leaves no choice."""
        most = min(choice.max_output_tokens - 1, choice.lease_tokens) - choice.num_output_tokens
        choice.output_token_ids += [5] * min(num_tokens, max(0, most))

    def take(self, row: ScheduledRow, token: int, num_turns: int) -> None:
        """What the engine does with a row's result; a row may compute several tokens in turn."""
        choice = row.choice
        samples = row.samples
        self.scheduler.advance(row)
        for turn in range(num_turns if samples else 0):
            if turn:
                following = ScheduledRow(choice, 1)
                self.write(following)
                self.check_reads(following)
                self.scheduler.advance(following)
            choice.output_token_ids.append(token)
            if choice.num_output_tokens >= choice.max_output_tokens:
                self.end(choice)
                return
            if choice.is_paused:
                return

    @precondition(lambda self: self.choices)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.choices)))

    @precondition(lambda self: self.choices)
    @rule(data=st.data(), lease=st.integers(0, 30))
    def extend(self, data: st.DataObject, lease: int) -> None:
        self.scheduler.extend(data.draw(st.sampled_from(self.choices)), lease)

    @precondition(lambda self: any(choice.slot is not None for choice in self.choices))
    @rule(data=st.data(), num_least=st.integers(1, 6), num_more=st.integers(0, 6))
    def borrow(self, data: st.DataObject, num_least: int, num_more: int) -> None:
        """Blocks for a moment; who gives way for them does so only where that is enough."""
        running = [choice for choice in self.choices if choice.slot is not None]
        choice = data.draw(st.sampled_from(running))
        if choice.is_paused:
            return  # the prompt of a question never is
        staying = [
            one
            for one in running
            if one is choice or (one.order < choice.order and not one.is_paused)
        ]
        num_others = [
            pool.num_blocks - len({block for one in staying for block in self.held(one, index)})
            for index, pool in enumerate(self.pools)
        ]
        num_preemptions = self.scheduler.num_preemptions
        num_free = min(pool.num_free for pool in self.pools)
        borrowed = self.scheduler.borrow(choice, num_least, num_least + num_more)
        assert bool(borrowed) == (min(num_others) >= num_least)
        if not borrowed or num_free >= num_least:
            assert self.scheduler.num_preemptions == num_preemptions
        for pool, memory, lent in zip(self.pools, self.memories, borrowed, strict=bool(borrowed)):
            assert num_least <= len(lent) <= num_least + num_more
            for block_id in lent:
                assert (pool.num_holders(block_id), pool._hashes[block_id]) == (1, None)
                memory[block_id][:] = [None] * BLOCK_SIZE
        if borrowed:
            self.scheduler.give_back(borrowed)

    def held(self, choice: Choice, index: int) -> set[int]:
        return {one for one in self.scheduler.tables(choice)[index] if one != NO_BLOCK}

    @rule()
    def lose_a_step(self) -> None:
        """The rows of a step fail, and with them goes the cache."""
        for row in self.scheduler.schedule().rows:
            self.end(row.choice)
        self.scheduler.reset()
        self.memories = self.empty_memories()
        self.states.lose()

    @rule()
    def find_no_numbers(self) -> None:
        """A row computes NaN; what it was made of is not used again."""
        schedule = self.scheduler.schedule()
        for row in schedule.rows[:1]:
            self.scheduler.distrust(row.choice)
            # Others may have computed the same for themselves; their blocks keep their names.
            for pool, table in zip(self.pools, self.scheduler.tables(row.choice), strict=True):
                assert not {pool._hashes[one] for one in table if one != NO_BLOCK} - {None}
                freed = row.choice.block_hashes[: table.count(NO_BLOCK)]
                assert not any(pool.find(content) for content in freed)
            self.end(row.choice)
        for row in schedule.rows[1:]:
            self.write(row)
            self.scheduler.advance(ScheduledRow(row.choice, row.num_tokens))
            if row.choice.num_uncomputed_tokens == 0:
                row.choice.output_token_ids.append(5)
                if row.choice.num_output_tokens >= row.choice.max_output_tokens:
                    self.end(row.choice)

    def end(self, choice: Choice) -> None:
        self.scheduler.finish(choice)
        self.choices.remove(choice)

    def write(self, row: ScheduledRow) -> None:
        choice = row.choice
        start = choice.num_computed_tokens
        tokens = choice.token_ids(start, start + row.num_tokens)
        for position, token in enumerate(tokens, start=start):
            self.put(choice, position, token)
        assert choice.slot is not None
        if self.has_states:
            self.states.compute(choice.slot, choice.block_ids, choice.token_ids(0, start), tokens)

    def put(self, choice: Choice, position: int, token: int) -> None:
        for pool, memory, table in zip(
            self.pools, self.memories, self.scheduler.tables(choice), strict=True
        ):
            block_id = table[position // BLOCK_SIZE]
            assert block_id != NO_BLOCK, "a freed block is written to"
            assert pool.num_holders(block_id) == 1, "a shared block is written to"
            assert pool._hashes[block_id] is None, "a named block is written to"
            memory[block_id][position % BLOCK_SIZE] = token

    @property
    def has_states(self) -> bool:
        """Recurrent layers are in a group that keeps the blocks of all tokens."""
        return self.groups[0].reach is None

    def write_draft(self, row: ScheduledRow, num_drafted: int) -> None:
        """Drafts are computed with the row; whatever they were, it is nobody's token."""
        first = row.choice.num_computed_tokens + 1
        for position in range(first, first + num_drafted):
            self.put(row.choice, position, -position)
        slot, known = row.choice.slot, row.choice.token_ids(0, first)
        assert slot is not None
        drafted = tuple(range(-first - num_drafted, -first))
        if self.has_states:
            self.states.compute(slot, row.choice.block_ids, known, drafted)

    def check_reads(self, row: ScheduledRow) -> None:
        choice = row.choice
        start = choice.num_computed_tokens
        end = start + row.num_tokens
        for group, memory, table in zip(
            self.groups, self.memories, self.scheduler.tables(choice), strict=True
        ):
            first = 0 if group.reach is None else max(0, start - group.reach + 1)
            held = [
                memory[table[position // BLOCK_SIZE]][position % BLOCK_SIZE]
                for position in range(first, end)
                if table[position // BLOCK_SIZE] != NO_BLOCK
            ]
            assert tuple(held) == choice.token_ids(first, end)

    @invariant()
    def every_block_is_counted(self) -> None:
        for index, pool in enumerate(self.pools):
            holders = [0] * pool.num_blocks
            for choice in self.choices:
                assert (choice.slot is not None) == (choice.status is ChoiceStatus.RUNNING)
                table = self.scheduler.tables(choice)[index]
                assert choice.slot is not None or not table
                for block_id in table:
                    if block_id != NO_BLOCK:
                        holders[block_id] += 1
            assert [pool.num_holders(one) for one in range(pool.num_blocks)] == holders
            assert pool.num_free == holders.count(0)
            free = [*pool._empty, *pool._cached]
            assert sorted(free) == [one for one in range(pool.num_blocks) if not holders[one]]

    @invariant()
    def nothing_is_kept_behind_a_window(self) -> None:
        for choice in self.choices:
            for group, table in zip(self.groups, self.scheduler.tables(choice), strict=True):
                num_held = sum(block_id != NO_BLOCK for block_id in table)
                if group.reach is None:
                    assert num_held == len(table)
                    continue
                first_seen = max(0, choice.num_computed_tokens - group.reach + 1)
                num_behind = min(first_seen // BLOCK_SIZE, len(table))
                assert table[:num_behind] == [NO_BLOCK] * num_behind
                assert num_held == len(table) - num_behind
                # The window, and what is being computed: a chunk, or drafts.
                assert num_held <= most_window_blocks(group.reach, 5, BLOCK_SIZE) + 1

    @invariant()
    def everybody_is_somewhere_once(self) -> None:
        listed = list(self.scheduler.choices())
        assert len(listed) == len(set(listed)) == self.scheduler.num_unfinished
        assert set(listed) == set(self.choices)
        slots = [choice.slot for choice in listed if choice.slot is not None]
        assert len(slots) == len(set(slots)) <= LIMITS.max_num_seqs

    @invariant()
    def names_tell_the_truth(self) -> None:
        for pool, memory in zip(self.pools, self.memories, strict=True):
            for content, block_id in pool._block_of.items():
                assert pool._hashes[block_id] == content
                assert None not in memory[block_id]
        for choice in self.choices:
            named = choice.block_hashes[: choice.num_named_blocks]
            tokens = choice.token_ids(0, choice.num_computed_tokens)
            assert tuple(named) == block_hashes(tokens, BLOCK_SIZE, choice.cache_salt)[: len(named)]
            for end in range(BLOCK_SIZE, len(named) * BLOCK_SIZE + 1, BLOCK_SIZE):
                if not self.has_states:
                    break
                self.states.check(-1, choice.block_ids, tokens[:end])

    @invariant()
    def the_changes_add_up(self) -> None:
        changes = self.pools[0].take_changes()
        if changes is not None:
            if changes.is_reset:
                self.known = set()
            assert not self.known & set(changes.added)
            assert self.known >= set(changes.removed)
            self.known = (self.known | set(changes.added)) - set(changes.removed)
        assert self.known == set(self.pools[0].contents())

    def teardown(self) -> None:
        """Everybody gets a lease and runs to the end; then every block is free."""
        for choice in tuple(self.choices):
            self.scheduler.extend(choice, 50)
        bound = (len(self.choices) + 1) * (LIMITS.max_num_seqs + 1) * LIMITS.max_model_len
        for _ in range(bound):
            if not self.choices:
                break
            self.step(5, 1)
        assert not self.choices
        assert all(pool.num_free == pool.num_blocks for pool in self.pools)


class WindowMachine(SchedulerMachine):
    """All layers are behind a window, for which few blocks are enough."""

    groups = (CacheGroup(6, reach=4),)


class MixedMachine(SchedulerMachine):
    """Some layers see all tokens, others a window."""

    groups = (CacheGroup(NUM_BLOCKS), CacheGroup(6, reach=4))


class NarrowMachine(SchedulerMachine):
    """A window of one token, and a window's blocks for one choice at a time."""

    groups = (CacheGroup(NUM_BLOCKS), CacheGroup(3, reach=1))


SETTINGS = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = SchedulerMachine.TestCase
TestWindowMachine = WindowMachine.TestCase
TestMixedMachine = MixedMachine.TestCase
TestNarrowMachine = NarrowMachine.TestCase
for _case in (TestSchedulerMachine, TestWindowMachine, TestMixedMachine, TestNarrowMachine):
    _case.settings = SETTINGS


def make(arrival: int, num_prompt: int, priority: int) -> Choice:
    return Choice(
        gateway_id="g",
        request_id=str(arrival),
        index=0,
        attempt=1,
        prompt_token_ids=(arrival,) * num_prompt,
        sampling=RowSampling(),
        max_output_tokens=1000,
        lease_tokens=1000,
        deadline=1.0,
        priority=priority,
        arrival=arrival,
    )


def run_step(scheduler: Scheduler, output: int) -> set[Choice]:
    """One step; choices end after so much output. Who got a slot."""
    schedule = scheduler.schedule()
    for row in schedule.rows:
        samples = row.samples
        scheduler.advance(row)
        if samples:
            row.choice.output_token_ids.append(1)
            if row.choice.num_output_tokens == output:
                scheduler.finish(row.choice)
    return set(schedule.admitted)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 15), st.integers(-2, 2), st.integers(0, 10)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 9),
)
def test_every_request_gets_its_slot_within_the_stated_number_of_steps(
    specs: list[tuple[int, int, int]], output: int
) -> None:
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    scheduler = Scheduler(LIMITS, [pool])
    pending = [
        (step, make(index, num_prompt, priority))
        for index, (num_prompt, priority, step) in enumerate(
            sorted(specs, key=lambda spec: spec[2])
        )
    ]
    waited: dict[Choice, int] = {}
    last_arrival = pending[-1][0]
    number = 0
    while pending or waited:
        while pending and pending[0][0] <= number:
            choice = pending.pop(0)[1]
            waited[choice] = 0
            scheduler.add(choice)
        for choice in run_step(scheduler, output):
            waited.pop(choice, None)
        number += 1
        for choice in waited:
            waited[choice] += number > last_arrival
            ahead = sum(other.order < choice.order for other in scheduler.choices())
            bound = (ahead + 1) * (LIMITS.max_num_seqs + 1) * LIMITS.max_model_len
            assert waited[choice] <= bound


def test_a_stream_of_important_requests_does_not_starve_an_unimportant_one() -> None:
    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    scheduler = Scheduler(LIMITS, [pool])
    unimportant = make(0, 4, priority=1)
    # More than the engine can take: three slots, two steps a choice, two arrivals a step.
    arrivals = itertools.count(1)
    for number in range(3 * AGING_STEPS):
        for _ in range(2):
            scheduler.add(make(next(arrivals), 1, priority=0))
        if number == 1:
            scheduler.add(unimportant)
        if unimportant in run_step(scheduler, 2):
            break
    # All who came before its time was up went first; they came faster than they left.
    assert AGING_STEPS < number < 2 * AGING_STEPS


def test_a_more_important_request_goes_first_among_those_that_wait() -> None:
    scheduler = Scheduler(LIMITS, [BlockPool(NUM_BLOCKS, BLOCK_SIZE)])
    first = [make(index, 1, priority=0) for index in range(3)]
    for choice in first:
        scheduler.add(choice)
    run_step(scheduler, 5)
    late, urgent = make(3, 1, priority=0), make(4, 1, priority=-1)
    scheduler.add(late)
    scheduler.add(urgent)
    scheduler.finish(first[0])
    assert run_step(scheduler, 5) == {urgent}


def num_calls(scheduler: Scheduler) -> int:
    """Function calls, also of C, that one step with a full batch takes."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # what a collection calls is no work of the step
    sys.setprofile(count)
    try:
        scheduler.schedule()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def test_a_step_costs_the_same_however_many_requests_wait() -> None:
    calls = []
    for num_waiting in (10, 5000):
        scheduler = Scheduler(LIMITS, [BlockPool(NUM_BLOCKS, BLOCK_SIZE)])
        for index in range(LIMITS.max_num_seqs + num_waiting):
            scheduler.add(make(index, 4, priority=index % 3))
        run_step(scheduler, 5)
        run_step(scheduler, 5)
        calls.append(num_calls(scheduler))
    assert calls[0] == calls[1]


def test_requests_that_give_up_while_they_wait_cost_no_look_at_the_others() -> None:
    scheduler = Scheduler(LIMITS, [BlockPool(NUM_BLOCKS, BLOCK_SIZE)])
    choices = [make(index, 4, priority=0) for index in range(2000)]
    for choice in choices:
        scheduler.add(choice)
    for choice in choices[::-1]:
        scheduler.finish(choice)
    assert scheduler.num_unfinished == 0
    assert len(scheduler._waiting._heap) < 100
    assert not scheduler.has_work()

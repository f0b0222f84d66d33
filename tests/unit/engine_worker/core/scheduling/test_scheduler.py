import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_worker.core.choice.batch import RowSampling
from engine_worker.core.choice.choice import Choice, ChoiceStatus
from engine_worker.core.scheduling.block_pool import BlockPool
from engine_worker.core.scheduling.scheduler import Schedule, Scheduler, SchedulerLimits
from engine_worker.errors import ContextLengthError


def make_scheduler(
    *,
    num_blocks: int = 16,
    block_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 16,
    chunk: int = 8,
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(num_blocks, block_size)
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        prefill_chunk_size=chunk,
        max_model_len=num_blocks * block_size,
    )
    return Scheduler(limits, [pool]), pool


def make_choice(
    arrival: int, num_prompt: int, *, priority: int = 0, lease: int = 1000, resumed: int = 0
) -> Choice:
    return Choice(
        gateway_id="g",
        request_id=str(arrival),
        index=0,
        attempt=0,
        prompt_token_ids=(arrival + 10,) * num_prompt,
        sampling=RowSampling(),
        max_output_tokens=1000,
        lease_tokens=lease,
        deadline=1.0,
        priority=priority,
        arrival=arrival,
        output_token_ids=[2] * resumed,
    )


def apply(scheduler: Scheduler, schedule: Schedule) -> None:
    """What the engine does with a step: compute, and append what was sampled."""
    for row in schedule.rows:
        samples = row.samples
        scheduler.advance(row)
        if samples:
            row.choice.output_token_ids.append(2)


def rows_of(schedule: Schedule) -> list[tuple[str, int]]:
    return [(row.choice.request_id, row.num_tokens) for row in schedule.rows]


def step(scheduler: Scheduler) -> list[tuple[str, int]]:
    schedule = scheduler.schedule()
    apply(scheduler, schedule)
    return rows_of(schedule)


def test_a_paused_choice_keeps_its_slot_where_its_blocks_would_not_be_enough() -> None:
    scheduler, pool = make_scheduler(num_blocks=12, budget=64, chunk=64)
    paused, running = make_choice(0, 11, lease=1), make_choice(1, 23)
    for choice in (paused, running):
        scheduler.add(choice)
    step(scheduler)
    large = make_choice(2, 22)
    scheduler.add(large)
    assert step(scheduler) == [("1", 1)]
    assert pool.num_free == 12 - 3 - 6
    assert paused.slot is not None
    # With the blocks of both there is room for it.
    scheduler.finish(running)
    assert step(scheduler) == [("2", 22)]
    assert paused.slot is not None


def test_a_long_prompt_is_computed_in_chunks_and_sampled_after_the_last() -> None:
    scheduler, _ = make_scheduler()
    choice = make_choice(0, 20)
    scheduler.add(choice)
    sampled = []
    for _ in range(4):
        schedule = scheduler.schedule()
        sampled.append((rows_of(schedule), schedule.rows[0].samples))
        apply(scheduler, schedule)
    assert sampled == [
        ([("0", 8)], False),
        ([("0", 8)], False),
        ([("0", 4)], True),
        ([("0", 1)], True),
    ]


def test_decodes_come_first_and_take_nothing_of_the_budget_of_prompts() -> None:
    scheduler, _ = make_scheduler(budget=8)
    scheduler.add(make_choice(0, 3))
    assert step(scheduler) == [("0", 3)]
    scheduler.add(make_choice(1, 20))
    assert step(scheduler) == [("0", 1), ("1", 8)]
    assert step(scheduler) == [("0", 1), ("1", 8)]
    assert step(scheduler) == [("0", 1), ("1", 4)]


@pytest.mark.parametrize("num_decodes", [0, 1, 3, 7])
def test_a_prompt_takes_as_many_steps_whoever_decodes(num_decodes: int) -> None:
    scheduler, _ = make_scheduler(num_blocks=64, max_num_seqs=8, budget=8)
    for arrival in range(num_decodes):
        scheduler.add(make_choice(arrival, 1))
    step(scheduler)
    choice = make_choice(9, 40)
    scheduler.add(choice)
    steps = [dict(step(scheduler)) for _ in range(5)]
    assert [rows["9"] for rows in steps] == [8] * 5
    assert all(len(rows) == num_decodes + 1 for rows in steps)
    assert choice.num_output_tokens == 1


def test_a_budget_below_the_number_of_slots_gets_every_prompt_done() -> None:
    scheduler, _ = make_scheduler(budget=1)
    for arrival in range(4):
        scheduler.add(make_choice(arrival, 3))
    for _ in range(12):
        step(scheduler)
    assert all(choice.num_output_tokens > 0 for choice in scheduler.choices())


def test_an_output_with_forced_tokens_gets_on_beside_a_long_important_prompt() -> None:
    scheduler, _ = make_scheduler(num_blocks=64, budget=8)
    output = make_choice(0, 3)
    scheduler.add(output)
    step(scheduler)
    # What a grammar leaves no choice about is appended at once.
    output.output_token_ids += [2, 2, 2]
    scheduler.add(make_choice(1, 80, priority=-1))
    assert step(scheduler) == [("0", 4), ("1", 5)]
    output.output_token_ids += [2, 2, 2]
    assert step(scheduler) == [("1", 8), ("0", 1)]
    assert step(scheduler) == [("1", 8), ("0", 1)]
    assert step(scheduler) == [("1", 8), ("0", 1)]
    # As many tokens as it has: the next one is drawn.
    assert step(scheduler) == [("0", 1), ("1", 8)]
    assert output.num_output_tokens == 9


def test_begun_prompts_go_before_new_ones() -> None:
    scheduler, _ = make_scheduler(budget=8)
    scheduler.add(make_choice(0, 12))
    assert step(scheduler) == [("0", 8)]
    scheduler.add(make_choice(1, 6))
    assert step(scheduler) == [("0", 4), ("1", 4)]


def test_lower_priority_numbers_are_admitted_first() -> None:
    scheduler, _ = make_scheduler(budget=4)
    scheduler.add(make_choice(0, 4, priority=5))
    scheduler.add(make_choice(1, 4, priority=1))
    assert step(scheduler) == [("1", 4)]


def test_no_more_requests_run_than_there_are_slots() -> None:
    scheduler, _ = make_scheduler(max_num_seqs=2)
    for arrival in range(3):
        scheduler.add(make_choice(arrival, 2))
    assert step(scheduler) == [("0", 2), ("1", 2)]
    assert scheduler.num_runnable == 2


def test_a_choice_waits_until_all_blocks_of_its_prompt_are_free() -> None:
    scheduler, _ = make_scheduler(num_blocks=6)
    first, second = make_choice(0, 12), make_choice(1, 12)
    scheduler.add(first)
    scheduler.add(second)
    assert step(scheduler) == [("0", 8)]
    scheduler.finish(first)
    assert step(scheduler) == [("1", 8)]


def test_when_blocks_run_out_the_youngest_is_preempted_and_what_was_lost_is_computed() -> None:
    scheduler, pool = make_scheduler(num_blocks=4, budget=32, chunk=16)
    old, young = make_choice(0, 8), make_choice(1, 4)
    scheduler.add(old)
    scheduler.add(young)
    assert step(scheduler) == [("0", 8), ("1", 4)]
    for _ in range(4):
        assert step(scheduler) == [("0", 1)] or young.status is ChoiceStatus.RUNNING
    assert young.status is ChoiceStatus.PREEMPTED
    assert (young.num_computed_tokens, young.block_ids, young.slot) == (0, [], None)
    num_tokens = young.num_tokens
    scheduler.finish(old)
    # Its first block was released and still holds what it held.
    assert step(scheduler) == [("1", num_tokens - 4)]
    assert pool.num_free == 4 - pool.num_blocks_for(num_tokens)


def test_the_lowest_priority_is_preempted_before_the_youngest() -> None:
    scheduler, _ = make_scheduler(num_blocks=4, budget=32, chunk=16)
    unimportant, important = make_choice(0, 4, priority=9), make_choice(1, 8)
    scheduler.add(unimportant)
    scheduler.add(important)
    while unimportant.status is not ChoiceStatus.PREEMPTED:
        step(scheduler)
    assert important.status is ChoiceStatus.RUNNING


def test_a_choice_pauses_at_its_lease_and_goes_on_when_it_grows() -> None:
    scheduler, _ = make_scheduler()
    choice = make_choice(0, 4, lease=2)
    scheduler.add(choice)
    step(scheduler)
    step(scheduler)
    assert choice.num_output_tokens == 2
    assert not scheduler.has_work()
    assert step(scheduler) == []
    scheduler.extend(choice, 3)
    assert scheduler.has_work()
    assert step(scheduler) == [("0", 1)]


def test_a_paused_request_gives_way_to_one_that_may_run() -> None:
    scheduler, _ = make_scheduler(max_num_seqs=1)
    paused, other = make_choice(0, 4, lease=1), make_choice(1, 4)
    scheduler.add(paused)
    scheduler.add(other)
    step(scheduler)
    assert step(scheduler) == [("1", 4)]
    assert paused.status is ChoiceStatus.PREEMPTED
    scheduler.finish(other)
    scheduler.extend(paused, 2)
    assert step(scheduler) == [("0", 1)]


def test_a_resumed_output_is_computed_with_the_prompt_and_not_sampled_again() -> None:
    scheduler, _ = make_scheduler()
    choice = make_choice(0, 4, resumed=3)
    scheduler.add(choice)
    assert step(scheduler) == [("0", 7)]
    assert choice.num_output_tokens == 4


def test_a_choice_that_can_never_fit_is_refused_with_both_numbers() -> None:
    scheduler, _ = make_scheduler(num_blocks=4, block_size=4)
    with pytest.raises(ContextLengthError, match=r"16 tokens.* 17 tokens"):
        scheduler.add(make_choice(0, 16))


def test_a_lost_cache_makes_everybody_start_over() -> None:
    scheduler, pool = make_scheduler()
    for arrival in range(3):
        scheduler.add(make_choice(arrival, 4))
    step(scheduler)
    scheduler.reset()
    assert pool.num_free == pool.num_blocks
    assert step(scheduler) == [("0", 5), ("1", 5), ("2", 5)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 20),  # prompt
            st.integers(1, 12),  # output
            st.integers(0, 2),  # priority
            st.integers(0, 6),  # first lease
            st.integers(0, 6),  # step of arrival
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_request_ends_and_every_block_and_slot_comes_back(
    specs: list[tuple[int, int, int, int, int]],
) -> None:
    scheduler, pool = make_scheduler(num_blocks=9, max_num_seqs=3, budget=8, chunk=5)
    pending = sorted(
        (
            (arrival_step, make_choice(index, prompt, priority=priority, lease=lease), output)
            for index, (prompt, output, priority, lease, arrival_step) in enumerate(specs)
        ),
        key=lambda entry: entry[0],
    )
    targets = {choice.request_id: output for _, choice, output in pending}
    for number in range(2000):
        while pending and pending[0][0] <= number:
            scheduler.add(pending.pop(0)[1])
        if not pending and scheduler.num_unfinished == 0:
            break
        had_work = scheduler.has_work()
        schedule = scheduler.schedule()
        assert bool(schedule.rows) == had_work
        # The budget, and a token of each slot's output.
        assert sum(row.num_tokens for row in schedule.rows) <= 8 + 3
        for row in schedule.rows:
            end = row.choice.num_computed_tokens + row.num_tokens
            assert len(row.choice.block_ids) * 4 >= end
            assert not row.choice.is_paused
        apply(scheduler, schedule)
        for choice in tuple(scheduler.choices()):
            if choice.num_output_tokens >= targets[choice.request_id]:
                scheduler.finish(choice)
            elif choice.is_paused and number % 3 == 0:
                scheduler.extend(choice, choice.lease_tokens + 2)
    assert not pending
    assert scheduler.num_unfinished == 0
    assert pool.num_free == pool.num_blocks

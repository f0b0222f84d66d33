"""Cache groups behind windows: what is held, freed, found again, and how many choices fit."""

from typing import Any

import pytest

from engine_worker.core.choice.batch import RowSampling
from engine_worker.core.choice.cache_group import (
    NO_BLOCK,
    CacheGroup,
    longest_sequence,
    most_window_blocks,
)
from engine_worker.core.choice.choice import Choice, ChoiceStatus
from engine_worker.core.decoding.speculation import SpeculationMode
from engine_worker.core.engine import Engine
from engine_worker.core.scheduling.block_pool import BlockPool
from engine_worker.core.scheduling.scheduler import Scheduler, SchedulerLimits
from protocol.wire.messages import Finished, SamplingParams
from tests.fakes.fake_runner import DeterministicFakeRunner, hashed_token
from tests.fakes.tiny_engine import Answer, generate, run_all
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

BLOCK_SIZE = 4
CHUNK = 8
WINDOW = 9
WHOLE = CacheGroup(64)
# The window before a token, and the chunk that is computed behind it.
MOST = most_window_blocks(WINDOW, CHUNK, BLOCK_SIZE)
ALL_WINDOWS = (CacheGroup(2 * MOST, WINDOW),)
MIXED = (WHOLE, CacheGroup(2 * MOST, WINDOW))


def make_choice(arrival: int, num_prompt: int, first: int | None = None) -> Choice:
    return Choice(
        gateway_id="g",
        request_id=str(arrival),
        index=0,
        attempt=1,
        prompt_token_ids=(arrival if first is None else first,) * num_prompt,
        sampling=RowSampling(),
        max_output_tokens=1000,
        lease_tokens=1000,
        deadline=1.0,
        arrival=arrival,
    )


class Harness:
    """A scheduler over some groups; a step appends a token to each choice that samples."""

    def __init__(
        self, *groups: CacheGroup, max_num_seqs: int = 8, max_model_len: int = 200
    ) -> None:
        limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=64,
            prefill_chunk_size=CHUNK,
            max_model_len=max_model_len,
        )
        self.pools = [BlockPool(group.num_blocks, BLOCK_SIZE) for group in groups]
        self.scheduler = Scheduler(limits, self.pools, [group.reach for group in groups])

    def step(self) -> None:
        for row in self.scheduler.schedule().rows:
            samples = row.samples
            self.scheduler.advance(row)
            if samples:
                row.choice.output_token_ids.append(7)

    def held(self, choice: Choice) -> list[int]:
        """How many blocks a choice holds of each group."""
        tables = self.scheduler.tables(choice)
        return [sum(block_id != NO_BLOCK for block_id in table) for table in tables]


def test_a_long_prompt_and_its_answer_hold_the_window_and_one_chunk_at_most() -> None:
    harness = Harness(WHOLE, CacheGroup(MOST, WINDOW))
    choice = make_choice(1, 150)
    harness.scheduler.add(choice)
    most = 0
    while choice.num_output_tokens < 40:
        harness.step()
        most = max(most, harness.held(choice)[1])
    # Without groups it would hold 47 blocks in every layer.
    assert harness.held(choice)[0] == -(-190 // BLOCK_SIZE)
    assert most == MOST == 5
    assert harness.held(choice)[1] <= -(-WINDOW // BLOCK_SIZE) + 1
    assert harness.scheduler.num_preemptions == 0


def test_more_windowed_requests_fit_into_the_same_blocks() -> None:
    def num_running(group: CacheGroup) -> int:
        harness = Harness(group, max_model_len=80)
        for arrival in range(8):
            harness.scheduler.add(make_choice(arrival, 80 - 1))
        harness.step()
        return harness.scheduler.num_runnable

    assert num_running(CacheGroup(21)) == 1
    assert num_running(CacheGroup(21, WINDOW)) == 4


@pytest.mark.parametrize(
    ("groups", "longest"),
    [
        ((CacheGroup(6),), 24),
        ((CacheGroup(MOST, WINDOW),), None),
        ((CacheGroup(MOST - 1, WINDOW),), 4 * (MOST - 1)),
        ((CacheGroup(30), CacheGroup(MOST, WINDOW)), 120),
        ((CacheGroup(30), CacheGroup(2, WINDOW)), 8),
    ],
)
def test_the_longest_request_is_bound_by_blocks_that_see_all_tokens_only(
    groups: tuple[CacheGroup, ...], longest: int | None
) -> None:
    assert longest_sequence(groups, BLOCK_SIZE, CHUNK) == longest


@pytest.mark.parametrize("first", range(1, 12))
def test_no_step_touches_more_blocks_than_are_kept_for_it(first: int) -> None:
    for reach in (1, 2, 5, 8, 9):
        for num_tokens in (1, 2, 8):
            seen = range(max(0, first - reach + 1), first + num_tokens)
            touched = {position // BLOCK_SIZE for position in seen}
            assert len(touched) <= most_window_blocks(reach, num_tokens, BLOCK_SIZE)


def test_a_beginning_is_found_where_its_window_is_still_there() -> None:
    harness = Harness(WHOLE, CacheGroup(4 * MOST, WINDOW))
    first = make_choice(1, 62)
    harness.scheduler.add(first)
    while first.num_output_tokens < 1:
        harness.step()
    # The early blocks are free now, and their contents still known: all of them are found.
    again = make_choice(2, 61, first=1)
    harness.scheduler.add(again)
    harness.step()
    assert again.num_cached_tokens == 60
    assert harness.scheduler.tables(again)[1][: 60 // BLOCK_SIZE - 2] == [NO_BLOCK] * 13


def test_a_beginning_whose_window_was_used_again_is_computed_again() -> None:
    harness = Harness(WHOLE, CacheGroup(MOST, WINDOW))
    first = make_choice(1, 62)
    harness.scheduler.add(first)
    while first.num_output_tokens < 1:
        harness.step()
    harness.scheduler.finish(first)
    # Its own later blocks took the places of the early ones: a short prompt finds nothing.
    short = make_choice(2, 22, first=1)
    harness.scheduler.add(short)
    harness.step()
    assert short.num_cached_tokens == 0
    harness.scheduler.finish(short)


def test_a_choice_that_is_preempted_finds_what_its_window_needs_and_goes_on() -> None:
    harness = Harness(WHOLE, CacheGroup(3 * MOST, WINDOW), max_num_seqs=2)
    choice = make_choice(1, 62)
    harness.scheduler.add(choice)
    while choice.num_output_tokens < 3:
        harness.step()
    harness.scheduler._preempt(choice)
    assert choice.status is ChoiceStatus.PREEMPTED
    assert harness.held(choice) == [0, 0]
    harness.step()
    assert choice.num_computed_tokens == 65
    assert choice.num_output_tokens == 4


def answers(groups: tuple[CacheGroup, ...], **options: Any) -> tuple[dict[str, Answer], Engine]:
    """Requests with a common beginning, more than fit at a time, on a runner without a model."""
    runner = DeterministicFakeRunner(
        hashed_token(250),
        block_size=BLOCK_SIZE,
        max_num_seqs=4,
        prefill_chunk_size=CHUNK,
        max_num_batched_tokens=16,
        max_new_tokens=options.pop("max_new_tokens", 1),
        runs_ahead=options.pop("runs_ahead", False),
        groups=groups,
    )
    engine = Engine(runner, byte_level_tokenizer(), vocab_size=258, max_model_len=100, **options)
    sampling = SamplingParams(max_tokens=25, temperature=0.0, ignore_eos=True)
    for index in range(7):
        prompt = (*range(1, 30), *range(40, 40 + 5 * index))
        output = (9, 8, 7) if index == 3 else ()
        engine.add(
            "g",
            generate(
                str(index),
                sampling,
                prompt_token_ids=prompt,
                output_token_ids=output,
                is_streaming=False,
                priority=-index,
            ),
        )
    return run_all(engine), engine


@pytest.mark.parametrize("groups", [ALL_WINDOWS, MIXED, (WHOLE, CacheGroup(MOST, WINDOW))])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": 8},
        {"runs_ahead": True},
        {"speculation": SpeculationMode.ALWAYS},
        {"prefix_cache": False},
    ],
)
def test_answers_are_those_of_a_cache_that_keeps_all_blocks(
    groups: tuple[CacheGroup, ...], options: dict[str, Any]
) -> None:
    """Chunks, decodes, look-ahead, drafts, prefix hits, preemption and resume; each read is
    checked."""
    expected, _ = answers((CacheGroup(200),), **options)
    found, engine = answers(groups, **options)
    assert {name: one.token_ids for name, one in found.items()} == {
        name: one.token_ids for name, one in expected.items()
    }
    assert all(isinstance(one.end, Finished) for one in found.values())
    load = engine.load()
    assert load.num_free_blocks == load.num_blocks


def test_the_load_tells_the_group_that_is_closest_to_its_end() -> None:
    runner = DeterministicFakeRunner(
        hashed_token(250), block_size=BLOCK_SIZE, prefill_chunk_size=CHUNK, groups=MIXED
    )
    engine = Engine(runner, byte_level_tokenizer(), vocab_size=258, max_model_len=100)
    sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    engine.add("g", generate("r", sampling, prompt_token_ids=tuple(range(1, 30))))
    engine.step()
    load = engine.load()
    # 8 of 64 blocks, but 5 of 10 behind windows.
    assert (load.num_free_blocks, load.num_blocks) == (32, 64)

"""Steps that were begun before they were asked for give the tokens of those that were not."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import pytest

from engine_worker.compute.runner.buckets import Bucket
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.programs import ProgramOutput
from engine_worker.compute.runner.run_ahead import RunAhead
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.core.choice.cache_group import NO_BLOCK
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from protocol.wire.messages import SamplingParams
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_engine import (
    MAX_MODEL_LEN,
    PROMPT,
    engine_on,
    run_all,
    tiny_engine_weights,
)
from tests.fakes.tiny_engine import generate as command

SAMPLINGS = (RowSampling(), RowSampling(temperature=0.9, top_p=0.8, seed=7), RowSampling())
NUM_TOKENS = 10


@pytest.fixture(scope="module")
def runner() -> JaxModelRunner:
    return JaxModelRunner.create(
        tiny_engine_weights(),
        num_blocks=60,
        max_model_len=MAX_MODEL_LEN,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        run_ahead=True,
    )


def fresh_requests() -> list[RunnerRequest]:
    return [
        RunnerRequest(slot, (5 + slot, 6, 7 - slot), range(slot * 10, slot * 10 + 10), sampling)
        for slot, sampling in enumerate(SAMPLINGS)
    ]


def outputs_alone(runner: JaxModelRunner) -> list[list[int]]:
    return [generate(runner, request, NUM_TOKENS) for request in fresh_requests()]


def begun(runner: JaxModelRunner) -> list[RunnerRequest]:
    requests = fresh_requests()
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    return requests


def decode(runner: JaxModelRunner, requests: Sequence[RunnerRequest]) -> None:
    """A step of decodes that are likely to go on."""
    rows = tuple(request.next_work(1) for request in requests)
    result = runner.run(StepBatch(rows, has_next=True))
    for request, token_id in zip(requests, result.token_ids, strict=True):
        request.output.append(int(token_id))


def test_steps_begun_ahead_are_taken_and_give_the_same_tokens(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    requests = begun(runner)
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    for _ in range(NUM_TOKENS - 1):
        decode(runner, requests)
    assert [request.output for request in requests] == alone
    assert runner.ahead.num_taken - num_taken == NUM_TOKENS - 2
    assert runner.ahead.num_dropped == num_dropped


def test_rows_that_leave_come_back_or_are_new_get_the_same_tokens(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    first, second, third = requests = begun(runner)
    decode(runner, requests)
    # One left: what was begun for three rows is dropped, and written again by the two.
    decode(runner, [first, second])
    decode(runner, [second, third])
    # One starts over from its tokens, in other blocks, while a step of it was under way.
    third.block_ids = range(30, 40)
    begin(runner, third)
    step(runner, [third])
    num_dropped = runner.ahead.num_dropped
    while requests:
        decode(runner, requests)
        requests = [request for request in requests if len(request.output) < NUM_TOKENS]
    assert [request.output for request in (first, second, third)] == alone
    assert runner.ahead.num_dropped > num_dropped


def test_blocks_of_a_dropped_step_belong_to_whoever_gets_them_next(runner: JaxModelRunner) -> None:
    alone = outputs_alone(runner)
    first, second, _ = begun(runner)
    decode(runner, [first, second])
    # The second ended; its blocks go to another request at once.
    newcomer = fresh_requests()[2]
    newcomer.slot, newcomer.block_ids = 1, second.block_ids
    begin(runner, newcomer)
    while len(newcomer.output) < NUM_TOKENS:
        step(runner, [first, newcomer])
    assert newcomer.output == alone[2]
    assert first.output[:NUM_TOKENS] == alone[0]


def test_a_token_that_the_host_changed_is_not_taken_for_the_one_sampled(
    runner: JaxModelRunner,
) -> None:
    (first, *_) = begun(runner)
    decode(runner, [first])
    sampled = first.output[-1]
    first.output[-1] = (sampled + 1) % 60
    num_taken = runner.ahead.num_taken
    decode(runner, [first])
    assert runner.ahead.num_taken == num_taken
    expected = RunnerRequest(3, first.token_ids[:-1], first.block_ids)
    assert first.output[-1] == generate(runner, expected, 1)[0]


def test_a_reset_forgets_what_was_begun(runner: JaxModelRunner) -> None:
    requests = begun(runner)
    decode(runner, requests)
    runner.reset()
    num_taken = runner.ahead.num_taken
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    decode(runner, requests)
    assert runner.ahead.num_taken == num_taken


def score(runner: JaxModelRunner, slot: int, num_stored: int, scratch: int) -> None:
    """A label after what a request has stored, in a block that was lent for it."""
    question = ScoredTexts((9,), ((3,),), 0)
    (pack,) = packs_of([question], runner.score_limits)
    blocks = fresh_requests()[slot].block_ids
    num_groups = len(runner.cache_groups)
    found = runner.score(pack, num_stored, slot, [blocks] * num_groups, [[[scratch]]] * num_groups)
    assert (found < 0).all()


def test_a_begun_step_whose_block_was_lent_to_a_score_is_computed_again(
    runner: JaxModelRunner,
) -> None:
    alone = outputs_alone(runner)
    first, second, _ = begun(runner)
    while len(first.token_ids) % runner.block_size:
        decode(runner, [first])
    # The step that was begun writes the first token of a block.
    decode(runner, [first])
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    score(runner, 1, len(second.prompt), first.block_ids[first.num_computed // 8])
    decode(runner, [first])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken, num_dropped + 1)
    while len(first.output) < NUM_TOKENS:
        decode(runner, [first])
    assert first.output[:NUM_TOKENS] == alone[0]


def test_a_score_in_blocks_of_nobody_costs_no_begun_step(runner: JaxModelRunner) -> None:
    first, second, _ = begun(runner)
    decode(runner, [first])
    num_taken = runner.ahead.num_taken
    score(runner, 1, len(second.prompt), 55)
    decode(runner, [first])
    assert runner.ahead.num_taken == num_taken + 1


def test_a_begun_step_of_a_slot_that_is_taken_anew_is_dropped(runner: JaxModelRunner) -> None:
    first, _, _ = begun(runner)
    decode(runner, [first])
    num_taken, num_dropped = runner.ahead.num_taken, runner.ahead.num_dropped
    runner.assign_slot(3, (1, 2), ())
    assert runner.ahead.num_dropped == num_dropped
    runner.assign_slot(first.slot, first.prompt, first.output)
    decode(runner, [first])
    assert (runner.ahead.num_taken, runner.ahead.num_dropped) == (num_taken, num_dropped + 1)


def test_an_engine_says_the_same_with_steps_that_were_begun_ahead(
    runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> list[list[int]]:
        engine = engine_on(runner)
        for index, (num_tokens, temperature) in enumerate([(30, 0.0), (11, 0.9), (4, 0.7)]):
            sampling = SamplingParams(
                temperature=temperature, seed=index, max_tokens=num_tokens, ignore_eos=True
            )
            prompt = PROMPT[: 9 + index]
            engine.add(
                "g", command(str(index), sampling, prompt_token_ids=prompt, is_streaming=True)
            )
        penalized = SamplingParams(presence_penalty=0.5, seed=2, max_tokens=8, ignore_eos=True)
        engine.add("g", command("3", penalized, is_streaming=True))
        found = run_all(engine)
        return [found[str(index)].token_ids for index in range(4)]

    num_taken = runner.ahead.num_taken
    ahead = answers()
    assert runner.ahead.num_taken - num_taken > 10
    monkeypatch.setattr(JaxModelRunner, "runs_ahead", False)
    num_taken = runner.ahead.num_taken
    assert answers() == ahead
    assert runner.ahead.num_taken == num_taken
    assert list(map(len, ahead)) == [30, 11, 4, 8]


def test_rows_without_room_for_the_next_step_are_refused(runner: JaxModelRunner) -> None:
    work = begun(runner)[0].next_work(1)
    with pytest.raises(ValueError, match="blocks do not fit"):
        runner.run(
            StepBatch((replace(work, start=7, block_ids=[0], window_block_ids=[0]),), has_next=True)
        )


@pytest.mark.parametrize(
    ("now", "is_taken"),
    [
        ([NO_BLOCK, 4, 5], True),
        ([NO_BLOCK, NO_BLOCK, 5, 6], True),
        ([3, 4, 5, 6], True),
        ([3, 8, 5], False),
        ([NO_BLOCK, 4], False),
    ],
)
def test_a_begun_step_is_taken_when_its_row_lost_blocks_behind_a_window(
    now: list[int], is_taken: bool
) -> None:
    output = ProgramOutput(jnp.array([[9]]), jnp.zeros((1, 1)), None)
    ahead = RunAhead(lambda bucket, rows: output)
    bucket = Bucket(1, 1)
    row = RowWork(0, (7,), 20, [0, 1, 2], True, RowSampling(), window_block_ids=[3, 4, 5])
    ahead.run(bucket, [row], has_next=True)
    following = replace(row, token_ids=(9,), start=21, window_block_ids=now)
    ahead.run(bucket, [following], has_next=False)
    assert (ahead.num_taken, ahead.num_dropped) == (int(is_taken), int(not is_taken))

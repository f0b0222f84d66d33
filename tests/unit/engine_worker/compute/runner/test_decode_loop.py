"""Several tokens a step, by going on or by checking drafts, are those of single steps."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.models.decoder import declare, random_weights
from engine_worker.compute.runner.drafts import split_drafts
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, StepBatch, StepResult
from tests.fakes.runner_requests import RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import tiny_spec

PROMPTS = ((5, 6, 7), (9, 10, 11, 12, 13), (3, 4))
SAMPLINGS = (
    RowSampling(),
    RowSampling(temperature=0.9, top_p=0.8, seed=7),
    RowSampling(temperature=1.0, seed=3, frequency_penalty=1.5, repetition_penalty=1.3),
)
NUM_TOKENS = 12


@pytest.fixture(
    scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.long)]
)
def runner(request: pytest.FixtureRequest) -> JaxModelRunner:
    weights = random_weights(declare(tiny_spec([None, 6]), jnp.dtype(request.param)), seed=1)
    return JaxModelRunner.create(
        weights, num_blocks=40, max_model_len=40, block_size=4, max_num_seqs=3
    )


def fresh_requests() -> list[RunnerRequest]:
    return [
        RunnerRequest(slot, prompt, range(slot * 10, slot * 10 + 10), sampling)
        for slot, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True))
    ]


def look_ahead(
    runner: JaxModelRunner,
    requests: Sequence[RunnerRequest],
    num_tokens: Sequence[int],
    stop_token_ids: tuple[int, ...] = (),
) -> StepResult:
    """One step that computes several tokens of each request."""
    works = [
        structs.replace(request.next_work(1), max_new_tokens=num, stop_token_ids=stop_token_ids)
        for request, num in zip(requests, num_tokens, strict=True)
    ]
    return runner.run(StepBatch(tuple(works)))


def begun_and_single(runner: JaxModelRunner) -> tuple[list[RunnerRequest], list[list[int]]]:
    """Requests with one token of output, and what they get in single steps, together."""
    requests = fresh_requests()
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    for _ in range(NUM_TOKENS - 1):
        step(runner, requests)
    outputs = [list(request.output) for request in requests]
    requests = fresh_requests()
    for request in requests:
        begin(runner, request)
        step(runner, [request])
    return requests, outputs


def test_rows_that_look_ahead_get_the_tokens_of_single_steps(runner: JaxModelRunner) -> None:
    requests, single = begun_and_single(runner)
    result = look_ahead(runner, requests, [NUM_TOKENS - 1] * 3)
    for index, request in enumerate(requests):
        ahead = [result.token_ids[index], *result.more_token_ids[index]]
        assert [*request.output, *ahead] == single[index]


def test_each_row_stops_at_its_own_number_of_tokens_and_goes_on_later(
    runner: JaxModelRunner,
) -> None:
    requests, single = begun_and_single(runner)
    nums = [1, 5, 3]
    result = look_ahead(runner, requests, nums)
    for index, (request, num) in enumerate(zip(requests, nums, strict=True)):
        more = result.more_token_ids.get(index, [])
        assert len(more) == num - 1
        request.output += [int(result.token_ids[index]), *more]
        request.num_computed += num - 1
    for _ in range(NUM_TOKENS):
        step(runner, requests)
    assert [request.output[:NUM_TOKENS] for request in requests] == single


def test_a_row_ends_with_the_stop_id_that_it_samples(runner: JaxModelRunner) -> None:
    requests, single = begun_and_single(runner)
    stop = single[1][4]
    result = look_ahead(runner, requests, [NUM_TOKENS - 1] * 3, stop_token_ids=(stop,))
    for index, tokens in enumerate(single):
        until = tokens.index(stop, 1) if stop in tokens[1:] else NUM_TOKENS - 1
        assert [result.token_ids[index], *result.more_token_ids.get(index, [])] == tokens[
            1 : until + 1
        ]


def test_counts_for_penalties_follow_the_tokens_of_a_look_ahead(runner: JaxModelRunner) -> None:
    requests, _ = begun_and_single(runner)
    result = look_ahead(runner, requests, [NUM_TOKENS - 1] * 3)
    counts = np.asarray(runner.state.counts)[2] & ((1 << 30) - 1)
    tokens = [*requests[2].output, result.token_ids[2], *result.more_token_ids[2]]
    expected = np.bincount(tokens, minlength=counts.size)
    np.testing.assert_array_equal(counts, expected)


def test_rows_that_cannot_look_ahead_are_refused(runner: JaxModelRunner) -> None:
    (request, *_), _ = begun_and_single(runner)
    work = request.next_work(1)
    with pytest.raises(ValueError, match="samples 1 to 32"):
        runner.run(StepBatch((structs.replace(work, max_new_tokens=33),)))
    with pytest.raises(ValueError, match="without the full sampler"):
        sampling = replace(work.sampling, num_logprobs=1)
        runner.run(StepBatch((structs.replace(work, max_new_tokens=2, sampling=sampling),)))
    with pytest.raises(ValueError, match="blocks do not fit"):
        runner.run(
            StepBatch(
                (
                    structs.replace(
                        work, max_new_tokens=20, block_ids=[0, 1], window_block_ids=[0, 1]
                    ),
                )
            )
        )
    with pytest.raises(ValueError, match="at most 8 stop ids"):
        runner.run(StepBatch((structs.replace(work, stop_token_ids=tuple(range(9))),)))


def run_drafts(
    runner: JaxModelRunner, requests: Sequence[RunnerRequest], drafts: Sequence[Sequence[int]]
) -> StepResult:
    """One step with drafts; what counts is appended."""
    works = [
        structs.replace(request.next_work(1), draft_token_ids=tuple(draft))
        for request, draft in zip(requests, drafts, strict=True)
    ]
    result = runner.run(StepBatch(tuple(works)))
    for index, request in enumerate(requests):
        more = result.more_token_ids.get(index, [])
        request.output += [int(result.token_ids[index]), *more]
        request.num_computed += len(more)
    return result


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("num_right", [0, 1, 2])
def test_drafts_count_as_far_as_they_are_what_single_steps_draw(
    runner: JaxModelRunner, index: int, num_right: int
) -> None:
    requests, single = begun_and_single(runner)
    request, tokens = requests[index], single[index]
    # Two draft tokens and the token before them take the program of three rows, as single steps
    # did.
    draft = [token if i < num_right else (token + 1) % 64 for i, token in enumerate(tokens[1:3])]
    result = run_drafts(runner, [request], [draft])
    assert request.output == tokens[: 2 + num_right]
    assert len(result.more_token_ids.get(0, [])) == num_right
    # What was computed for wrong drafts disturbs nobody.
    while len(request.output) < NUM_TOKENS:
        run_drafts(runner, [request], [tokens[len(request.output) :][:2]])
    assert request.output[:NUM_TOKENS] == tokens


def test_rows_with_drafts_and_without_share_a_step(runner: JaxModelRunner) -> None:
    requests, single = begun_and_single(runner)
    run_drafts(runner, [requests[2], requests[0]], [(), single[0][1:2]])
    assert requests[0].output == single[0][:3]
    assert requests[2].output == single[2][:2]


def test_rows_that_cannot_draft_are_refused(runner: JaxModelRunner) -> None:
    requests, _ = begun_and_single(runner)
    work = requests[0].next_work(1)
    with pytest.raises(ValueError, match="drafts at most 2 tokens, not 3"):
        runner.run(StepBatch((structs.replace(work, draft_token_ids=(1, 2, 3)),)))
    drafting = structs.replace(work, draft_token_ids=(1,))
    with pytest.raises(ValueError, match="at most 3 rows, not 4"):
        split_drafts((drafting, drafting), 3, 2)
    for changes in (
        {"sampling": SAMPLINGS[2]},
        {"sampling": RowSampling(num_logprobs=1)},
        {"max_new_tokens": 2},
        {"sample": False},
    ):
        with pytest.raises(ValueError, match="only decodes"):
            runner.run(StepBatch((structs.replace(work, draft_token_ids=(1,), **changes),)))
    with pytest.raises(ValueError, match="blocks do not fit"):
        runner.run(
            StepBatch(
                (
                    structs.replace(
                        work, draft_token_ids=(1, 2), block_ids=[0], window_block_ids=[0]
                    ),
                )
            )
        )


def test_the_deterministic_mode_computes_one_token_a_step() -> None:
    weights = random_weights(declare(tiny_spec([None]), np.float32), seed=1)
    deterministic = JaxModelRunner.create(
        weights, num_blocks=8, max_model_len=16, block_size=4, deterministic=True
    )
    assert deterministic.max_new_tokens == 1


def test_the_loop_converts_no_matrix_ahead_of_its_turns() -> None:
    spec = replace(tiny_spec([None]), vocab_size=20_000)
    runner = JaxModelRunner.create(
        random_weights(declare(spec, jnp.bfloat16), seed=1),
        num_blocks=8,
        max_model_len=16,
        block_size=4,
        max_num_seqs=2,
    )
    # Of one token, so that nothing but the loop's own program is compiled.
    generate(runner, RunnerRequest(0, (5,), range(4)), 2)
    (program,) = runner.programs.values()
    # What a conversion ahead of the loop leaves behind: a whole float32 matrix as an array.
    entry = program.as_text().split("ENTRY ")[1]
    assert f"f32[{spec.vocab_size},{spec.hidden_size}]" not in entry

"""Recurrent layers through the runner: states at borders, in rings, and what reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.backends.kv_layout import LayerStates
from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.spec import LayerSpec, MlpSpec
from engine_worker.compute.runner import buckets
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowWork, StepBatch
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from tests.fakes.runner_requests import GREEDY, RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import (
    GreedyReference,
    tiny_attention,
    tiny_hybrid_spec,
    tiny_spec,
    tiny_weights,
)

BLOCK_SIZE = 8


def long(value: int) -> Any:
    """A parameter of `make soak`, not of `make test`."""
    return pytest.param(value, marks=pytest.mark.long)


@cache
def model_weights() -> DecoderWeights:
    return tiny_weights(spec=tiny_hybrid_spec())


def make_runner(
    weights: DecoderWeights | None = None,
    *,
    deterministic: bool = False,
    run_ahead: bool = False,
) -> JaxModelRunner:
    with pytest.MonkeyPatch.context() as patch:
        # Programs of one row and of all rows, of five kinds of layers each, are enough to compile.
        patch.setattr(buckets, "DECODE_ROWS", (1,))
        runner = JaxModelRunner.create(
            weights or model_weights(),
            num_blocks=40,
            max_model_len=96,
            block_size=BLOCK_SIZE,
            max_num_seqs=4,
            max_num_batched_tokens=32,
            deterministic=deterministic,
            speculates=True,
            run_ahead=run_ahead,
        )
    spoil(runner)
    return runner


def spoil(runner: JaxModelRunner) -> None:
    """Whatever is read before it was written is no number."""
    spoiled = tuple(
        LayerStates(tuple(jnp.full_like(array, jnp.nan) for array in layer.arrays))
        if isinstance(layer, LayerStates)
        else layer
        for layer in runner.state.cache
    )
    runner._state = runner.state._replace(cache=spoiled)


@pytest.fixture(scope="module")
def shared() -> Iterator[JaxModelRunner]:
    runner = make_runner()
    yield runner
    runner.close()


@pytest.fixture
def runner(shared: JaxModelRunner) -> JaxModelRunner:
    shared.reset()
    spoil(shared)
    return shared


@cache
def reference() -> GreedyReference:
    return GreedyReference(model_weights(), 96)


def prompt_of(length: int, seed: int = 3) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(3, 64, length)]


def blocks(index: int) -> list[int]:
    return list(range(index * 10, index * 10 + 10))


def decode_row(request: RunnerRequest, start: int, **more: object) -> RowWork:
    token_ids = (request.token_ids[start],)
    blocks = request.block_ids
    row = RowWork(request.slot, token_ids, start, blocks, True, GREEDY, window_block_ids=blocks)
    return structs.replace(row, **more)


@pytest.mark.parametrize("chunk", [long(32), 8, 7, long(1)])
@pytest.mark.parametrize("length", [1, long(2), long(8), long(9), long(31)])
def test_chunks_of_any_size_and_decodes_choose_what_the_reference_chooses(
    runner: JaxModelRunner, chunk: int, length: int
) -> None:
    request = RunnerRequest(1, prompt_of(length), blocks(2))
    expected = reference().continue_greedily(request.prompt, 20)
    assert generate(runner, request, 20, chunk) == expected


def test_rows_beside_each_other_keep_their_states_apart(runner: JaxModelRunner) -> None:
    requests = [RunnerRequest(i, prompt_of(5 + 9 * i, i), blocks(i)) for i in range(3)]
    for request in requests:
        begin(runner, request)
    while len(requests[-1].output) < 12:
        step(runner, requests, 6)
    for request in requests:
        expected = reference().continue_greedily(request.prompt, len(request.output))
        assert request.output == expected


@pytest.mark.parametrize("num_shared", [1, 2, 3])
def test_blocks_of_another_request_are_a_beginning_with_its_state(
    runner: JaxModelRunner, num_shared: int
) -> None:
    prompt = prompt_of(30)
    generate(runner, RunnerRequest(0, prompt, blocks(0)), 10)
    expected = reference().continue_greedily(prompt, 10)
    shared = blocks(0)[:num_shared]
    hit = RunnerRequest(2, prompt, [*shared, *blocks(1)])
    runner.assign_slot(hit.slot, hit.prompt, ())
    hit.num_computed = num_shared * BLOCK_SIZE
    while len(hit.output) < 10:
        step(runner, [hit])
    assert hit.output == expected


def test_a_preempted_request_goes_on_from_its_last_full_block_in_another_slot(
    runner: JaxModelRunner,
) -> None:
    request = RunnerRequest(0, prompt_of(13), blocks(0))
    generate(runner, request, 6)
    # Its slot goes to somebody else meanwhile.
    generate(runner, RunnerRequest(0, prompt_of(11, 8), blocks(1)), 4)
    resumed = RunnerRequest(
        3, request.prompt, [*blocks(0)[:2], *blocks(2)], output=list(request.output)
    )
    runner.assign_slot(3, resumed.prompt, resumed.output)
    resumed.num_computed = 2 * BLOCK_SIZE
    while len(resumed.output) < 12:
        step(runner, [resumed])
    assert resumed.output == reference().continue_greedily(request.prompt, 12)


@pytest.mark.parametrize("length", [long(5), long(6), 7, 8, long(12)])
@pytest.mark.parametrize("num_right", [0, long(1), 3])
def test_a_wrong_draft_leaves_no_state_behind(
    runner: JaxModelRunner, length: int, num_right: int
) -> None:
    request = RunnerRequest(0, prompt_of(length), blocks(0))
    expected = reference().continue_greedily(request.prompt, 24)
    begin(runner, request)
    while not request.output:
        step(runner, [request])
    while len(request.output) < 20:
        known = len(request.output)
        draft = expected[known : known + num_right]
        draft += [(token + 1) % 64 for token in expected[known + num_right : known + 4]]
        row = decode_row(request, request.num_computed, draft_token_ids=tuple(draft))
        result = runner.run(StepBatch((row,)))
        request.output += [int(result.token_ids[0]), *result.more_token_ids.get(0, ())]
        assert len(request.output) == known + 1 + num_right
        request.num_computed = len(request.token_ids) - 1
    assert request.output == expected[: len(request.output)]


def test_drafts_longer_than_the_rings_hold_are_refused(runner: JaxModelRunner) -> None:
    most = runner.max_draft_tokens
    assert runner.kv_layout.rings.num_states == most + 2
    request = RunnerRequest(0, prompt_of(4), blocks(0))
    with pytest.raises(ValueError, match=f"at most {most} tokens"):
        runner.run(StepBatch((decode_row(request, 3, draft_token_ids=(5,) * (most + 1)),)))


def test_tokens_sampled_ahead_of_the_host_carry_their_states(runner: JaxModelRunner) -> None:
    request = RunnerRequest(0, prompt_of(14), blocks(0))
    begin(runner, request)
    step(runner, [request])
    row = decode_row(request, request.num_computed, max_new_tokens=13)
    result = runner.run(StepBatch((row,)))
    request.output += [int(result.token_ids[0]), *result.more_token_ids[0]]
    request.num_computed = len(request.token_ids) - 1
    step(runner, [request])
    assert request.output == reference().continue_greedily(request.prompt, 15)


def test_a_step_begun_ahead_and_dropped_is_computed_again_from_the_same_state() -> None:
    runner = make_runner(run_ahead=True)
    request = RunnerRequest(0, prompt_of(14), blocks(0))
    other = RunnerRequest(1, prompt_of(4, 9), blocks(1))
    begin(runner, request)
    begin(runner, other)
    step(runner, [request, other])
    for index in range(12):
        row = request.next_work(1)
        result = runner.run(StepBatch((row,), next_rows=(0,)))
        request.output.append(int(result.token_ids[0]))
        if index % 3 == 2:
            # Somebody else decodes too, in a program of its own or together with the dropped row.
            if index % 2:
                runner.ahead.drop()
            step(runner, [request, other])
    assert runner.ahead.num_dropped >= 2
    assert runner.ahead.num_taken >= 8
    for each in (request, other):
        expected = reference().continue_greedily(each.prompt, len(each.output))
        assert each.output == expected
    runner.close()


@pytest.mark.parametrize("length", [long(8), 11, long(16)])
def test_questions_follow_a_prompt_from_its_state_and_leave_it_as_it_was(
    runner: JaxModelRunner, length: int
) -> None:
    request = RunnerRequest(1, prompt_of(length), blocks(0))
    begin(runner, request)
    step(runner, [request])
    expected = reference().continue_greedily(request.prompt, 12)
    questions = [ScoredTexts((7, 9, 11), ((5,), (6,)), 0), ScoredTexts((12,), ((5,),), 2)]
    for pack in packs_of(questions, runner.score_limits):
        scratch = [
            [20 + 3 * row + i for i in range(runner.num_scratch_blocks(length, len(tokens)))]
            for row, tokens in enumerate(pack.rows)
        ]
        found = runner.score(pack, length, request.slot, [request.block_ids] * 2, [scratch] * 2)
        for pair, score in zip(pack.pairs, found, strict=True):
            before = [*request.prompt, *pack.rows[pair.row][: pair.offset + 1]]
            logits = reference().logits(before)[-1].astype(np.float64)
            logprob = logits[pair.token_id] - np.log(np.exp(logits).sum())
            assert score == pytest.approx(logprob, abs=1e-3)
    while len(request.output) < 12:
        step(runner, [request])
    assert request.output == expected


@pytest.mark.long
def test_in_the_deterministic_mode_a_cached_beginning_gives_the_same_bits() -> None:
    runner = make_runner(deterministic=True)
    prompt = prompt_of(29)
    whole = RunnerRequest(0, prompt, blocks(0))
    generate(runner, whole, 4)
    kept = states_of(runner, blocks(0)[:3])
    expected = list(whole.output)
    again = RunnerRequest(2, prompt, [blocks(0)[0], *blocks(1)])
    other = RunnerRequest(1, prompt_of(9, 5), blocks(2))
    begin(runner, other)
    runner.assign_slot(2, prompt, ())
    again.num_computed = BLOCK_SIZE
    while len(again.output) < 4:
        step(runner, [other, again], 5)
    assert again.output == expected
    for one, two in zip(kept, states_of(runner, again.block_ids[:3]), strict=True):
        np.testing.assert_array_equal(one, two)
    runner.close()


def states_of(runner: JaxModelRunner, block_ids: Sequence[int]) -> list[np.ndarray]:
    return [
        np.asarray(array)[list(block_ids)]
        for layer in runner.state.cache
        if isinstance(layer, LayerStates)
        for array in layer.arrays
    ]


def test_a_lost_state_is_built_again_by_a_reset(runner: JaxModelRunner) -> None:
    request = RunnerRequest(0, prompt_of(10), blocks(0))
    expected = list(generate(runner, request, 6))
    runner.reset()
    request.output.clear()
    assert generate(runner, request, 6) == expected


@pytest.mark.parametrize("kind", ["decode", pytest.param("prefill", marks=pytest.mark.long)])
def test_states_are_updated_in_place_however_many_there_are(kind: str) -> None:
    delta = DeltaNetSpec(2, 4, key_dim=32, value_dim=32, kernel_size=4)
    layers = tuple(LayerSpec(mixer, MlpSpec(48)) for mixer in (delta, tiny_attention()))
    runner = make_runner(tiny_weights(spec=replace(tiny_spec(), layers=layers)))
    bucket = next(
        bucket for bucket in runner.packed_layouts if bucket.is_prefill == (kind == "prefill")
    )
    memory = runner._programs.compile(bucket).memory_analysis()
    states_bytes = sum(
        array.nbytes
        for layer in runner.state.cache
        if isinstance(layer, LayerStates)
        for array in layer.arrays
    )
    assert memory.alias_size_in_bytes >= states_bytes
    # Not one copy of them is made.
    assert memory.temp_size_in_bytes < states_bytes // 2
    runner.close()

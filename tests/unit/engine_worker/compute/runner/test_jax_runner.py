"""The runner on a tiny decoder against dense greedy decoding."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec import structs

from engine_worker.compute.models.decoder import DecoderWeights
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from tests.fakes.quick_compile import few_decode_programs
from tests.fakes.runner_requests import GREEDY, RunnerRequest, begin, generate, step
from tests.fakes.tiny_decoder import VOCAB_SIZE, GreedyReference, tiny_weights

MAX_MODEL_LEN = 80


@cache
def model_weights() -> DecoderWeights:
    return tiny_weights()


def make_runner(weights: DecoderWeights | None = None, num_blocks: int = 40) -> JaxModelRunner:
    with few_decode_programs():
        return JaxModelRunner.create(
            weights or model_weights(),
            num_blocks=num_blocks,
            max_model_len=MAX_MODEL_LEN,
            block_size=8,
            max_num_seqs=4,
            max_num_batched_tokens=32,
        )


@pytest.fixture(scope="module")
def reports() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def warm_runner(reports: list[tuple[float, str]]) -> JaxModelRunner:
    runner = make_runner()
    runner.warm_up(lambda fraction, text: reports.append((fraction, text)))
    runner.finish_warm_up()
    return runner


@pytest.fixture
def runner(warm_runner: JaxModelRunner) -> JaxModelRunner:
    warm_runner.reset()
    return warm_runner


@pytest.fixture(scope="module")
def reference() -> GreedyReference:
    return GreedyReference(model_weights(), MAX_MODEL_LEN)


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, VOCAB_SIZE, num_tokens)]


def blocks(request: int) -> list[int]:
    """Ten blocks of a request, in no order."""
    return [10 * request + int(x) for x in np.random.default_rng(request).permutation(10)]


def test_a_start_waits_for_no_program_that_only_scores(
    warm_runner: JaxModelRunner, reports: list[tuple[float, str]]
) -> None:
    """They are compiled behind, or with the first question; steps can't be without the others."""
    texts = [text for _, text in reports]
    assert len(texts) == 2 + len(warm_runner._buckets.largest)
    assert not [text for text in texts if "scoring" in text]


@pytest.mark.parametrize("max_tokens", [None, 7])
def test_a_prompt_in_chunks_and_its_continuation_match_the_dense_reference(
    runner: JaxModelRunner, reference: GreedyReference, max_tokens: int | None
) -> None:
    request = RunnerRequest(0, prompt_of(45), blocks(1))
    output = generate(runner, request, 12, max_tokens)
    assert output == reference.continue_greedily(request.prompt, 12)


def test_ragged_requests_that_come_and_go_match_the_dense_reference(
    runner: JaxModelRunner, reference: GreedyReference
) -> None:
    requests = [
        RunnerRequest(slot, prompt_of(length, seed=slot), blocks(slot))
        for slot, length in enumerate([3, 41, 12, 1])
    ]
    for request in requests:
        begin(runner, request)
    running = requests[:1]
    for turn in range(14):
        running = requests[: min(turn // 2 + 1, 4)]
        step(runner, running, max_tokens=20)
    for request in requests:
        expected = reference.continue_greedily(request.prompt, len(request.output))
        assert request.output == expected
        assert len(expected) > 3


# So has the cache of backends/test_native_runner.py.
@pytest.mark.long
def test_bfloat16_weights_run_with_bits_in_the_cache() -> None:
    weights = tiny_weights(jnp.bfloat16)
    runner = make_runner(weights)
    request = RunnerRequest(3, prompt_of(9), blocks(0))
    output = generate(runner, request, 4)
    assert all(array.dtype == jnp.uint16 for array in jax.tree.leaves(runner.state.cache))
    exact = DecoderWeights(
        tiny_weights().graph, tuple(leaf.astype(jnp.float32) for leaf in weights.leaves)
    )
    logits = GreedyReference(exact, MAX_MODEL_LEN).logits([*request.prompt, *output])
    for index, token_id in enumerate(output):
        row = logits[len(request.prompt) - 1 + index]
        assert row.max() - row[token_id] < 0.1 * row.std()


def test_nothing_is_compiled_after_warm_up_whatever_the_traffic(runner: JaxModelRunner) -> None:
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "compile" in event:
            compiled.append(event)

    num_compiles = runner.num_compiles
    # Decode programs, a prefill program, a full sampler, scoring, and counting a slot's tokens.
    assert num_compiles == 2 + 1 + 1 + 3 + 1
    samplings = [
        GREEDY,
        RowSampling(temperature=0.8, top_k=5, top_p=0.9, seed=3),
        RowSampling(temperature=1.0, repetition_penalty=1.2, logit_bias=((3, 2.0),)),
        RowSampling(temperature=1.0, min_p=0.1, num_logprobs=3),
    ]
    requests = [
        RunnerRequest(slot, prompt_of(5 + 13 * slot), blocks(slot), sampling)
        for slot, sampling in enumerate(samplings)
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for request in requests:
            begin(runner, request)
        for turn in range(10):
            step(runner, requests[: turn % 4 + 1], max_tokens=11 + turn)
        for num_tokens in (1, 16, 17, 64):
            question = ScoredTexts(tuple(prompt_of(num_tokens)), ((1,), (2,)), 0)
            (pack,) = packs_of([question], runner.score_limits)
            scratch = [blocks(1)[: runner.num_scratch_blocks(5, num_tokens)]]
            assert len(runner.score(pack, 5, 0, [blocks(0)] * 2, [scratch] * 2)) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert runner.num_compiles == num_compiles


def test_a_step_donates_its_state(runner: JaxModelRunner) -> None:
    before = runner.state
    generate(runner, RunnerRequest(0, prompt_of(4), blocks(0)), 2)
    assert all(array.is_deleted() for array in jax.tree.leaves(before))


def test_every_program_updates_its_state_in_place(runner: JaxModelRunner) -> None:
    state_bytes = sum(array.nbytes for array in jax.tree.leaves(runner.state))
    for program in runner.programs.values():
        memory = program.memory_analysis()
        assert memory.alias_size_in_bytes == state_bytes


def test_warm_up_reports_rising_progress_up_to_the_end(
    warm_runner: JaxModelRunner, reports: list[tuple[float, str]]
) -> None:
    # The largest decode, prefill, full sampler and scoring, between a first and a last report.
    assert len(reports) == 3 + 2
    fractions = [fraction for fraction, _ in reports]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert any("prefill of 32 tokens" in text for _, text in reports)


def test_a_seeded_draw_is_the_same_alone_in_company_and_after_a_recompute(
    runner: JaxModelRunner,
) -> None:
    sampling = RowSampling(
        temperature=1.0, top_p=0.95, seed=2**63 + 11, choice=1, frequency_penalty=0.4
    )
    alone = generate(runner, RunnerRequest(2, prompt_of(17), blocks(0), sampling), 12)
    runner.reset()
    others = [RunnerRequest(slot, prompt_of(9, slot), blocks(slot + 1)) for slot in (0, 1)]
    request = RunnerRequest(3, prompt_of(17), blocks(3), sampling)
    for each in (*others, request):
        begin(runner, each)
    for _ in range(6):
        step(runner, [*others, request])
    begin(runner, request)
    for _ in range(6):
        step(runner, [request, others[0]])
    assert request.output == alone


def test_penalties_count_prompt_and_output_of_the_slots_owner_only(runner: JaxModelRunner) -> None:
    """With a huge presence penalty no token comes twice; with repetition none of the prompt."""
    apart = RowSampling(presence_penalty=1e4)
    request = RunnerRequest(1, prompt_of(5), blocks(0), apart)
    generate(runner, request, 40)
    assert len(set(request.output)) == 40
    unseen = RowSampling(repetition_penalty=1e6)
    later = RunnerRequest(1, prompt_of(6, seed=4), blocks(0), unseen)
    logits_positive = generate(runner, later, 5)
    assert not set(logits_positive) & set(later.prompt)
    resumed = replace(request, output=list(request.output[:20]), num_computed=0)
    begin(runner, resumed)
    for _ in range(20):
        step(runner, [resumed])
    assert resumed.output == request.output


def poison(runner: JaxModelRunner, block_ids: Sequence[int]) -> None:
    """NaN in all keys and values of some blocks."""
    cache = jax.tree.map(
        lambda pool: pool.at[jnp.asarray(block_ids)].set(jnp.nan), runner.state.cache
    )
    runner._state = runner.state._replace(cache=cache)


def test_nan_is_reported_for_its_own_row_only(runner: JaxModelRunner) -> None:
    requests = [RunnerRequest(slot, prompt_of(9), blocks(slot)) for slot in (0, 1)]
    for request in requests:
        begin(runner, request)
    step(runner, requests)
    poison(runner, requests[0].block_ids[:1])
    result = runner.run(StepBatch(tuple(request.next_work(1) for request in requests)))
    assert result.has_nan.tolist() == [True, False]
    assert result.token_ids[0] == -1
    assert result.token_ids[1] >= 0


def test_nan_that_a_block_held_before_reaches_no_later_user(
    runner: JaxModelRunner, reference: GreedyReference
) -> None:
    poison(runner, list(range(runner.num_blocks + 1)))
    request = RunnerRequest(0, prompt_of(42), blocks(2))
    assert generate(runner, request, 6) == reference.continue_greedily(request.prompt, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot": 4}, "slot 4"),
        ({"token_ids": ()}, "1 to 32 tokens, not 0"),
        ({"token_ids": (1,) * 33}, "1 to 32 tokens, not 33"),
        ({"start": 78, "token_ids": (1,) * 3}, "ends at 81"),
        ({"block_ids": ()}, "0 blocks"),
        ({"block_ids": (40,)}, "block ids are 0 to 39"),
        ({"scored_token_ids": (1, 2, 3)}, "scores at most as many"),
    ],
)
def test_a_row_beyond_the_limits_is_refused_before_anything_is_computed(
    runner: JaxModelRunner, change: dict[str, object], message: str
) -> None:
    row = RowWork(0, (1, 2), 0, (3,), True, GREEDY, window_block_ids=(3,))
    before = runner.state
    with pytest.raises(ValueError, match=message):
        runner.run(StepBatch((structs.replace(row, **change),)))
    assert runner.state is before


def test_after_a_lost_state_a_reset_gives_an_empty_cache_that_works(
    reference: GreedyReference, monkeypatch: pytest.MonkeyPatch, runner: JaxModelRunner
) -> None:
    request = RunnerRequest(0, prompt_of(6), blocks(0))
    generate(runner, request, 2)

    def lose_state(leaves: object, state: object, packed: object) -> object:
        jax.tree.map(lambda array: array.delete(), state)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(
            runner._programs.store, "_programs", dict.fromkeys(runner.programs, lose_state)
        )
        with pytest.raises(RuntimeError, match="out of memory"):
            step(runner, [request])
    runner.reset()
    assert not any(np.asarray(pool).any() for pool in jax.tree.leaves(runner.state.cache[0]))
    again = RunnerRequest(0, prompt_of(6), blocks(0))
    assert generate(runner, again, 5) == reference.continue_greedily(again.prompt, 5)


def test_limits_that_make_no_runner_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        JaxModelRunner.create(model_weights(), num_blocks=4, max_model_len=8, max_num_seqs=257)
    with pytest.raises(ValueError, match="at least 1"):
        JaxModelRunner.create(model_weights(), num_blocks=0, max_model_len=8)
    with pytest.raises(ValueError, match="float32"):
        JaxModelRunner.create(
            tiny_weights(jnp.bfloat16), num_blocks=4, max_model_len=8, deterministic=True
        )

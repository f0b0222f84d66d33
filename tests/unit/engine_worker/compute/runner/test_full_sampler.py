"""Sampling apart from the step program, through the runner: masks, biases and log probabilities."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.compute.runner.program_set import ProgramSet
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch, StepResult, TokenScores
from engine_worker.core.choice.token_mask import allow_all, allow_only, forbid
from tests.fakes.runner_requests import GREEDY
from tests.fakes.tiny_decoder import GreedyReference
from tests.fakes.tiny_engine import MAX_MODEL_LEN, tiny_engine_weights
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

VOCAB_SIZE = byte_level_tokenizer().num_tokens
PROMPT = tuple(int(x) for x in np.random.default_rng(5).integers(0, VOCAB_SIZE, 21))
BLOCKS = (0, 3, 1, 2)
RANDOM = RowSampling(temperature=1.0, seed=9, top_p=0.95)


@pytest.fixture(params=["bucket_runner", "deterministic_runner"])
def runner(request: pytest.FixtureRequest) -> JaxModelRunner:
    shared: JaxModelRunner = request.getfixturevalue(request.param)
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def logits() -> npt.NDArray[np.float32]:
    """[T, V] after each token of the prompt, by the dense reference."""
    return GreedyReference(tiny_engine_weights(), MAX_MODEL_LEN).logits(PROMPT)


def row(slot: int = 0, **changes: object) -> RowWork:
    """The whole prompt as one row that is sampled."""
    blocks = [5 * slot + block for block in BLOCKS]
    work = RowWork(slot, PROMPT, 0, blocks, True, GREEDY, window_block_ids=blocks)
    return structs.replace(work, **changes)


def run(runner: JaxModelRunner, *rows: RowWork) -> StepResult:
    for each in rows:
        runner.assign_slot(each.slot, PROMPT, ())
    return runner.run(StepBatch(rows))


def assert_scores(scores: TokenScores, logits: npt.NDArray[np.float32], num_top: int) -> None:
    """Against the logits of one position, [V]."""
    exact = logits.astype(np.float64)
    logprobs = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    assert scores.logprob == pytest.approx(logprobs[scores.token_id], abs=1e-4)
    assert scores.rank == 1 + np.sum(exact > exact[scores.token_id])
    assert [token_id for token_id, _ in scores.top] == np.argsort(-exact)[:num_top].tolist()
    best = np.sort(logprobs)[::-1][:num_top]
    np.testing.assert_allclose([logprob for _, logprob in scores.top], best, atol=1e-4)


def test_a_masked_token_is_never_chosen_and_the_next_best_is(
    runner: JaxModelRunner, logits: npt.NDArray[np.float32]
) -> None:
    best, second = np.argsort(-logits[-1])[:2].tolist()
    mask = allow_all(VOCAB_SIZE)
    forbid(mask, [best])
    result = run(runner, row(allowed_mask=mask), row(1))
    assert result.token_ids.tolist() == [second, best]


def test_only_what_both_masks_allow_can_come(
    runner: JaxModelRunner, logits: npt.NDArray[np.float32]
) -> None:
    order = np.argsort(-logits[-1]).tolist()
    result = run(
        runner,
        row(
            allowed_mask=allow_only(order[1:3], VOCAB_SIZE),
            pending_mask=lambda: allow_only([order[0], order[2]], VOCAB_SIZE),
        ),
    )
    assert result.token_ids.tolist() == [order[2]]


def test_a_row_whose_masks_allow_nothing_is_named_and_the_others_go_on(
    runner: JaxModelRunner,
) -> None:
    nothing = allow_only([], VOCAB_SIZE)
    result = run(runner, row(allowed_mask=nothing, sampling=RANDOM), row(1))
    assert result.nothing_allowed == {0}
    assert result.token_ids[0] == -1
    assert result.token_ids[1] >= 0
    assert not result.has_nan.any()


def test_a_bias_moves_the_choice_of_its_own_row_only(
    runner: JaxModelRunner, logits: npt.NDArray[np.float32]
) -> None:
    best = int(logits[-1].argmax())
    worst = int(logits[-1].argmin())
    lifted = RowSampling(logit_bias=((worst, 100.0),))
    lowered = RowSampling(logit_bias=((best, -100.0), (VOCAB_SIZE - 1, 0.0)))
    result = run(runner, row(sampling=lifted), row(1, sampling=lowered), row(2))
    second = int(np.argsort(-logits[-1])[1])
    assert result.token_ids.tolist() == [worst, second, best]


@pytest.mark.parametrize("num_top", [0, 3, 20])
def test_log_probabilities_are_the_models_own_whatever_else_is_asked_for(
    runner: JaxModelRunner, logits: npt.NDArray[np.float32], num_top: int
) -> None:
    plain = replace(RANDOM, num_logprobs=num_top)
    bent = replace(plain, temperature=3.0, logit_bias=((7, 4.0),), presence_penalty=1.0)
    mask = allow_only(range(0, VOCAB_SIZE, 2), VOCAB_SIZE)
    result = run(runner, row(sampling=plain), row(1, sampling=bent, allowed_mask=mask), row(2))
    assert set(result.logprobs) == {0, 1}
    for index, scores in result.logprobs.items():
        assert scores.token_id == result.token_ids[index]
        assert_scores(scores, logits[-1], num_top)


def test_the_same_token_is_drawn_with_and_without_log_probabilities(
    runner: JaxModelRunner,
) -> None:
    for seed in range(8):
        sampling = replace(RANDOM, seed=seed, temperature=2.0)
        result = run(
            runner,
            row(sampling=sampling),
            row(1, sampling=replace(sampling, num_logprobs=2)),
            row(2, sampling=sampling, allowed_mask=allow_all(VOCAB_SIZE)),
        )
        assert len(set(result.token_ids.tolist())) == 1
        alone = run(runner, row(sampling=sampling))
        assert alone.token_ids[0] == result.token_ids[0]


@pytest.mark.parametrize("cut", [21, 8, pytest.param(1, marks=pytest.mark.long)])
def test_the_tokens_of_a_prompt_are_scored_chunk_by_chunk(
    runner: JaxModelRunner, logits: npt.NDArray[np.float32], cut: int
) -> None:
    sampling = RowSampling(num_prompt_logprobs=2)
    found: list[TokenScores] = []
    for start in range(0, len(PROMPT), cut):
        end = min(start + cut, len(PROMPT))
        chunk = row(
            token_ids=PROMPT[start:end],
            start=start,
            sample=end == len(PROMPT),
            sampling=sampling,
            scored_token_ids=PROMPT[start + 1 : end + 1],
        )
        result = run(runner, chunk)
        found.extend(result.prompt_logprobs.get(0, ()))
        assert not result.logprobs
    assert result.token_ids[0] == logits[-1].argmax()
    assert [scores.token_id for scores in found] == list(PROMPT[1:])
    for position, scores in enumerate(found):
        assert_scores(scores, logits[position], 2)


def test_nan_fails_its_own_row_although_only_scores_are_wanted(runner: JaxModelRunner) -> None:
    cache = jax.tree.map(lambda pool: pool.at[BLOCKS[0]].set(np.nan), runner.state.cache)
    runner._state = runner.state._replace(cache=cache)
    scored = RowSampling(num_prompt_logprobs=0)
    later = row(
        token_ids=PROMPT[8:12],
        start=8,
        sample=False,
        sampling=scored,
        scored_token_ids=PROMPT[9:13],
    )
    result = run(runner, later, row(1, sampling=replace(GREEDY, num_logprobs=1)))
    assert result.has_nan.tolist() == [True, False]
    assert set(result.logprobs) == {1}


def test_masks_are_asked_for_after_the_forward_pass_has_begun(
    runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the programs exist.
    run(runner, row(allowed_mask=allow_all(VOCAB_SIZE)))
    events: list[str] = []
    programs = dict(runner.programs)

    def watched(bucket: object) -> object:
        def call(*args: object) -> object:
            events.append("forward")
            return programs[bucket](*args)  # type: ignore[index]

        return call

    def mask() -> npt.NDArray[np.uint32]:
        events.append("mask")
        return allow_all(VOCAB_SIZE)

    samplers = dict(runner._programs.store.programs)
    steps = {bucket: watched(bucket) for bucket in programs}
    monkeypatch.setattr(runner._programs.store, "_programs", samplers | steps)
    run(runner, row(pending_mask=mask))
    assert events[0] == "forward"
    assert events.count("mask") == 1
    assert events[-1] == "mask"


def test_a_row_that_wants_more_is_sampled_apart_and_the_others_in_their_step(
    bucket_runner: JaxModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket_runner.reset()
    rows = [row(slot, sampling=replace(RANDOM, seed=slot)) for slot in range(4)]
    run(bucket_runner, *rows)
    sampled: list[list[int]] = []
    real = ProgramSet.sample

    def sample(self: ProgramSet, *arguments: Any) -> Any:
        sampled.append([one.slot for one in arguments[2]])
        return real(self, *arguments)

    monkeypatch.setattr(ProgramSet, "sample", sample)
    decodes = [structs.replace(one, token_ids=(7,), start=len(PROMPT)) for one in rows]
    plain = bucket_runner.run(StepBatch(tuple(decodes))).token_ids.tolist()
    assert not sampled
    scored = structs.replace(decodes[2], sampling=replace(decodes[2].sampling, num_logprobs=1))
    result = bucket_runner.run(StepBatch((*decodes[:2], scored, decodes[3])))
    assert result.token_ids.tolist() == plain
    assert set(result.logprobs) == {2}
    assert sampled == [[2]]
    # The others go on for several tokens; it has its one.
    ahead = [structs.replace(one, max_new_tokens=3) for one in decodes]
    result = bucket_runner.run(StepBatch((*ahead[:2], scored, ahead[3])))
    assert result.token_ids.tolist() == plain
    assert {index: len(more) for index, more in result.more_token_ids.items()} == {0: 2, 1: 2, 3: 2}
    # Of two rows the full sampler has as many as they are.
    sampled.clear()
    assert bucket_runner.run(StepBatch((decodes[1], scored))).token_ids.tolist() == plain[1:3]
    assert sampled == [[1, 2]]

"""Scores of packs against the log probabilities of the same tokens as a prompt's own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.backends.base import PackedDecoder, StepTokens, forward
from engine_worker.compute.backends.kv_layout import KvCache
from engine_worker.compute.models.decoder import DecoderWeights, Leaves
from engine_worker.compute.runner.jax_runner import JaxModelRunner
from engine_worker.core.choice.batch import RowSampling, RowWork, StepBatch
from engine_worker.core.choice.score_pack import ScoredTexts, packs_of
from tests.fakes.packed_decoder import needs_native, packed
from tests.fakes.tiny_decoder import VOCAB_SIZE, tiny_attention, tiny_spec, tiny_weights

BLOCKS = list(range(8))
GENERATOR = np.random.default_rng(5)


def tokens(num: int) -> tuple[int, ...]:
    return tuple(GENERATOR.integers(0, VOCAB_SIZE, num).tolist())


PROMPT = tokens(37)
SHARED = tokens(3)
QUESTIONS = (
    ScoredTexts((*SHARED, *tokens(4)), ((1,), (2,)), 0),
    ScoredTexts((*SHARED, *tokens(1)), ((3, 4, 5), (3, 6), (7,)), 2),
    ScoredTexts(tokens(9), ((8,),), 5),
)
NUM_LABELS = 6


def make_runner(weights: DecoderWeights | PackedDecoder, *, num_blocks: int = 60) -> JaxModelRunner:
    return JaxModelRunner.create(
        weights,
        num_blocks=num_blocks,
        max_model_len=80,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=64,
    )


def prefill(runner: JaxModelRunner, prompt: Sequence[int]) -> None:
    runner.assign_slot(0, prompt, ())
    row = RowWork(
        slot=0,
        token_ids=prompt,
        start=0,
        block_ids=BLOCKS,
        window_block_ids=BLOCKS,
        sample=False,
        sampling=RowSampling(),
    )
    runner.run(StepBatch((row,)))


def scores(
    runner: JaxModelRunner,
    questions: Sequence[ScoredTexts],
    prompt: Sequence[int] = PROMPT,
    num_labels: int = NUM_LABELS,
) -> list[float]:
    sums, num_groups = [0.0] * num_labels, len(runner.cache_groups)
    for pack in packs_of(questions, runner.score_limits):
        free = iter(range(len(BLOCKS), runner.num_blocks))
        scratch = [
            [next(free) for _ in range(runner.num_scratch_blocks(len(prompt), len(row)))]
            for row in pack.rows
        ]
        found = runner.score(
            pack, len(prompt), 0, [BLOCKS] * num_groups, [scratch] * num_groups
        ).tolist()
        for pair, score in zip(pack.pairs, found, strict=True):
            sums[pair.label] += score
    return sums


def prompt_scores(runner: JaxModelRunner) -> list[float]:
    """Each label by the log probabilities of its tokens at the end of a prompt."""
    found = []
    for question in QUESTIONS:
        for label in question.labels:
            whole = (*PROMPT, *question.token_ids, *label)
            row = RowWork(
                slot=0,
                token_ids=whole,
                start=0,
                block_ids=BLOCKS,
                window_block_ids=BLOCKS,
                sample=True,
                sampling=RowSampling(num_prompt_logprobs=0),
                scored_token_ids=whole[1:],
            )
            result = runner.run(StepBatch((row,)))
            found.append(sum(one.logprob for one in result.prompt_logprobs[0][-len(label) :]))
    return found


WINDOWED = tiny_spec()
WINDOWED = replace(
    WINDOWED,
    layers=tuple(
        replace(layer, mixer=tiny_attention(window=5 + 36 * (index % 2), softcap=20.0))
        for index, layer in enumerate(WINDOWED.layers)
    ),
)


@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [
        (tiny_weights, 1e-4),
        pytest.param(partial(tiny_weights, spec=WINDOWED), 1e-4, marks=pytest.mark.long),
        pytest.param(partial(tiny_weights, jnp.bfloat16), 0.1, marks=pytest.mark.long),
    ],
    ids=["float32", "windows", "bfloat16"],
)
def test_a_pack_scores_as_the_prompt_with_these_tokens_would(
    weights: Callable[[], DecoderWeights], tolerance: float
) -> None:
    runner = make_runner(weights())
    prefill(runner, PROMPT)
    packed = scores(runner, QUESTIONS)
    assert packed == pytest.approx(prompt_scores(runner), abs=tolerance)
    # Which questions share a pack makes no difference, and the cache was only read.
    alone = [scores(runner, (question,)) for question in QUESTIONS]
    assert packed == pytest.approx(np.sum(alone, axis=0).tolist(), abs=tolerance)


@needs_native
@pytest.mark.parametrize(
    ("weight_type", "tolerance"),
    [("float32", 1e-3), pytest.param("bfloat16", 0.1, marks=pytest.mark.long)],
)
def test_the_native_kernels_score_as_their_own_prompts(weight_type: str, tolerance: float) -> None:
    runner = make_runner(packed(tiny_weights(), "cpu_native", weight_type))
    prefill(runner, PROMPT)
    assert scores(runner, QUESTIONS) == pytest.approx(prompt_scores(runner), abs=tolerance)


@needs_native
def test_tokens_that_nobody_looks_at_change_no_bits_of_the_others_nor_of_the_cache() -> None:
    decoder, num_tokens = packed(tiny_weights(), "cpu_native", "float32"), 12
    backend = decoder.backend
    layout = backend.kv_layout(num_blocks=2, block_size=8)
    positions = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    step = StepTokens(
        token_ids=positions,
        positions=positions,
        is_token=positions >= 0,
        num_stored=jnp.full(1, num_tokens, jnp.int32),
        block_tables=(jnp.arange(2, dtype=jnp.int32)[None],) * len(layout.num_blocks),
        slots=jnp.zeros(1, jnp.int32),
        new_slots=jnp.zeros(1, jnp.int32),
        layout=layout,
    )

    @jax.jit
    def computed(leaves: Leaves, is_wanted: jax.Array | None) -> tuple[jax.Array, KvCache]:
        cache = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), layout.abstract())
        return forward(backend.bind(leaves), backend.spec, cache, step, is_wanted)

    is_wanted = np.isin(np.arange(num_tokens), (4, num_tokens - 1))
    whole, cache = computed(decoder.leaves, None)
    some, other_cache = computed(decoder.leaves, jnp.asarray(is_wanted))
    is_same = np.all(np.asarray(some) == np.asarray(whole), axis=1)
    assert is_same.tolist() == is_wanted.tolist()  # the last layer wasn't computed of the rest
    same = jax.tree.map(lambda one, other: bool(jnp.all(one == other)), cache, other_cache)
    assert jax.tree.all(same)


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_pack_with_as_many_places_as_it_holds_scores_each_label_after_its_own(
    which: int,
) -> None:
    runner = make_runner(tiny_weights(), num_blocks=80)
    prefill(runner, PROMPT)
    limits = runner.score_limits
    shape, most = limits.shapes[which], limits.max_places[which]
    # No place is the first of the pack, which stands where there is padding.
    length, num_tokens = most // shape.num_rows, (2, 20)[which]
    questions = [
        ScoredTexts(tokens(num_tokens), (tokens(length),), number)
        for number in range(shape.num_rows)
    ]
    (pack,) = packs_of(questions, limits)
    assert len({(pair.row, pair.offset) for pair in pack.pairs}) == most
    num_labels = len(questions)
    together = scores(runner, questions, num_labels=num_labels)
    alone = [scores(runner, [question], num_labels=num_labels) for question in questions]
    assert together == pytest.approx(np.sum(alone, axis=0).tolist(), abs=1e-4)


def test_in_the_deterministic_mode_a_question_has_the_same_bits_whatever_is_asked_beside(
    runner_of_engines: JaxModelRunner,
) -> None:
    runner = runner_of_engines
    runner.reset()
    prefill(runner, PROMPT)
    together = scores(runner, QUESTIONS)
    backwards = scores(runner, QUESTIONS[::-1])
    alone = np.sum([scores(runner, (question,)) for question in QUESTIONS], axis=0).tolist()
    assert together == backwards == alone
    assert together == pytest.approx(prompt_scores(runner), abs=1e-4)


def test_what_a_block_holds_beyond_the_beginning_is_not_seen() -> None:
    runner = make_runner(tiny_weights())
    prefill(runner, PROMPT)
    before = scores(runner, QUESTIONS)
    prefill(runner, (*PROMPT, *tokens(20)))
    assert scores(runner, QUESTIONS) == before


def test_a_weight_that_is_no_number_gives_no_number() -> None:
    weights = tiny_weights()
    leaves = (jnp.full_like(weights.leaves[0], jnp.nan), *weights.leaves[1:])
    runner = make_runner(DecoderWeights(weights.graph, leaves))
    prefill(runner, PROMPT)
    assert all(map(np.isnan, scores(runner, QUESTIONS)))

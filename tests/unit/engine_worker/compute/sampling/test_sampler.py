"""The sampler as a whole: order, distribution, penalties, and independence of other rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from engine_worker.compute.sampling.noise import gumbel_noise
from engine_worker.compute.sampling.params import SamplingRows
from engine_worker.compute.sampling.penalties import PROMPT_FLAG, count_tokens
from engine_worker.compute.sampling.sampler import (
    NAN_LOGITS,
    NOT_SAMPLED,
    count_sampled,
    first_of_maximum,
    sample_tokens,
)
from tests.fakes.sampling_rows import sampling_rows

VOCAB_SIZE = 300
Floats = npt.NDArray[np.float32]
_sample = jax.jit(sample_tokens)


def sample(
    logits: Floats, rows: SamplingRows, counts: npt.NDArray[np.int32] | None = None
) -> npt.NDArray[np.int32]:
    """Tokens of all rows; few rows are repeated up to eight, so that one program serves them."""
    if counts is None:
        counts = np.zeros((len(logits), logits.shape[1]), np.int32)
    num_rows = len(logits)
    if num_rows < 8:
        index = np.arange(8) % num_rows
        logits, counts, rows = jax.tree.map(lambda x: np.asarray(x)[index], (logits, counts, rows))
    return np.asarray(_sample(logits, counts, rows))[:num_rows]


def random_logits(num_rows: int, seed: int = 0) -> Floats:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((num_rows, VOCAB_SIZE), np.float32) * np.float32(3)


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    logits[0, [9, 40, 7]] = 5.0
    assert sample(logits, sampling_rows(2, temperatures=0.0)).tolist() == [7, 0]


def test_a_draw_is_the_argmax_of_scaled_logits_and_noise() -> None:
    logits = random_logits(6)
    temperatures = np.array([0.1, 0.7, 1.0, 1.3, 2.0, 50.0], np.float32)
    positions = np.arange(6)
    rows = sampling_rows(6, temperatures=temperatures, positions=positions, choices=3)
    noise = np.asarray(
        gumbel_noise((rows.seeds_low, rows.seeds_high), rows.choices, rows.positions, VOCAB_SIZE)
    )
    expected = np.argmax(logits / temperatures[:, None] + noise, axis=1)
    np.testing.assert_array_equal(sample(logits, rows), expected)


def test_draws_over_many_seeds_follow_the_softmax() -> None:
    """Chi-square over 8,000 fixed seeds; the bound is the 99.9th percentile."""
    num_draws, num_tokens = 8000, 12
    logits = np.random.default_rng(1).standard_normal(num_tokens).astype(np.float32)
    rows = sampling_rows(num_draws, temperatures=0.8, seeds_low=np.arange(num_draws))
    tokens = sample(np.tile(logits, (num_draws, 1)), rows)
    weights = np.exp(logits.astype(np.float64) / 0.8)
    expected = num_draws * weights / weights.sum()
    observed = np.bincount(tokens, minlength=num_tokens)
    assert np.sum((observed - expected) ** 2 / expected) < 31.3


def test_draws_over_positions_with_filters_follow_the_renormalised_softmax() -> None:
    num_draws = 8000
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    rows = sampling_rows(num_draws, positions=np.arange(num_draws), top_ks=4, top_ps=0.8)
    tokens = sample(np.tile(logits, (num_draws, 1)), rows)
    observed = np.bincount(tokens, minlength=5)
    assert observed[3:].tolist() == [0, 0]
    expected = num_draws * np.array([0.4, 0.3, 0.15]) / 0.85
    assert np.sum((observed[:3] - expected) ** 2 / expected) < 13.8


def test_top_k_of_one_and_a_tiny_temperature_are_greedy() -> None:
    logits = random_logits(4)
    greedy = sample(logits, sampling_rows(4, temperatures=0.0))
    np.testing.assert_array_equal(sample(logits, sampling_rows(4, top_ks=1)), greedy)
    np.testing.assert_array_equal(sample(logits, sampling_rows(4, temperatures=1e-6)), greedy)


def mixed_rows() -> SamplingRows:
    """Rows that between them open every branch of the sampler."""
    return sampling_rows(
        6,
        temperatures=[0.0, 1.0, 0.8, 1.2, 0.9, 1.0],
        top_ks=[0, 0, 20, 0, 0, 200],
        top_ps=[1.0, 1.0, 1.0, 0.9, 1.0, 1.0],
        log_min_ps=[-np.inf] * 4 + [math.log(0.1), -np.inf],
        presence_penalties=[0, 0, 0, 0, 0, 1.5],
        seeds_low=range(6),
    )


def pick(rows: SamplingRows, index: int) -> SamplingRows:
    return SamplingRows(*(np.asarray(column)[index : index + 1] for column in rows))  # type: ignore[arg-type]


def test_a_row_gets_the_same_token_alone_and_beside_rows_that_open_every_branch() -> None:
    rows = mixed_rows()
    counts = np.zeros((6, VOCAB_SIZE), np.int32)
    counts[:, ::2] = 1
    for seed in range(5):
        logits = random_logits(6, seed)
        together = sample(logits, rows, counts)
        for index in range(6):
            alone = _sample(logits[index : index + 1], counts, pick(rows, index))
            assert int(alone[0]) == together[index]


def test_penalties_follow_their_definitions() -> None:
    logits = random_logits(3)
    prompt, output = [1, 2, 2], [2, 3, 3, 3]
    counts = np.tile(count_tokens(prompt, output, VOCAB_SIZE), (3, 1))
    assert counts[0, 1] == PROMPT_FLAG
    assert counts[0, 2] == PROMPT_FLAG + 1
    assert counts[0, 3] == 3
    expected = logits.astype(np.float64)
    expected[0, [2, 3]] -= 0.5 * np.array([1, 3])
    expected[1, [2, 3]] -= 0.7
    seen = expected[2, 1:4]
    expected[2, 1:4] = np.where(seen > 0, seen / 1.3, seen * 1.3)
    rows = sampling_rows(
        3,
        frequency_penalties=[0.5, 0, 0],
        presence_penalties=[0, 0.7, 0],
        repetition_penalties=[1, 1, 1.3],
    )
    noise = np.asarray(
        gumbel_noise((rows.seeds_low, rows.seeds_high), rows.choices, rows.positions, VOCAB_SIZE)
    )
    # Lift the penalised tokens to the top, so that the penalties decide the draw.
    lift = np.zeros(VOCAB_SIZE, np.float32)
    lift[1:5] = 8.0
    for scale in np.linspace(0.0, 1.0, 9, dtype=np.float32):
        shifted = logits * scale + lift
        ratio = np.where(shifted > 0, shifted / 1.3, shifted * 1.3)[2, 1:4]
        wanted = shifted.astype(np.float64) + (expected - logits)
        wanted[2] = shifted[2]
        wanted[2, 1:4] = ratio
        np.testing.assert_array_equal(
            sample(shifted, rows, counts), np.argmax(wanted + noise, axis=1)
        )


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_rows_that_hold_no_numbers_are_flagged_and_the_others_are_not(broken: float) -> None:
    logits = random_logits(3)
    logits[1, 200] = broken
    logits[0, 100] = -np.inf
    for temperature in (0.0, 1.0):
        tokens = sample(logits, sampling_rows(3, temperatures=temperature))
        assert tokens[1] == NAN_LOGITS
        assert min(tokens[0], tokens[2]) >= 0


def test_a_row_that_wants_no_token_gets_none() -> None:
    tokens = sample(random_logits(2), sampling_rows(2, sampled=[True, False]))
    assert tokens[0] >= 0
    assert tokens[1] == NOT_SAMPLED


def test_sampled_tokens_are_counted_in_their_slots_and_padding_is_not() -> None:
    counts = np.zeros((3, 4), np.int32)
    rows = sampling_rows(4, slots=[2, 0, 3, 1])
    tokens = np.array([1, 3, 2, NOT_SAMPLED], np.int32)
    counted = np.asarray(jax.jit(count_sampled)(counts, tokens, rows))
    assert np.argwhere(counted).tolist() == [[0, 3], [2, 1]]


@pytest.mark.parametrize("vocab_size", [1, 7, 128, 1000, 1031, 1536])
def test_first_of_maximum_agrees_with_argmax(vocab_size: int) -> None:
    scores = np.random.default_rng(2).integers(-3, 3, (5, vocab_size)).astype(np.float32)
    np.testing.assert_array_equal(
        np.asarray(first_of_maximum(jnp.asarray(scores))), scores.argmax(axis=1)
    )


def test_the_first_of_equal_maxima_wins_across_the_parts_of_a_row() -> None:
    scores = np.zeros((3, 1536), np.float32)
    scores[0, [700, 1300]] = scores[1, [1023, 1024]] = scores[2, [0, 1535]] = 1.0
    assert np.asarray(first_of_maximum(jnp.asarray(scores))).tolist() == [700, 1023, 0]


def test_finding_the_maximum_makes_no_array_as_large_as_the_scores() -> None:
    scores = np.zeros((4, 8192), np.float32)
    memory = jax.jit(first_of_maximum).lower(scores).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < scores.nbytes // 4

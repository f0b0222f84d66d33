"""The noise of a draw: right distribution, and the same bits everywhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_worker.compute.sampling import floats
from engine_worker.compute.sampling.noise import gumbel_from_bits, gumbel_noise, threefry
from tests.fakes.quick_compile import AS_ENGINES

VOCAB_SIZE = 200


@partial(jax.jit, compiler_options=AS_ENGINES)
def noise_of(
    low: jax.Array, high: jax.Array, choices: jax.Array, positions: jax.Array
) -> jax.Array:
    return gumbel_noise((low, high), choices, positions, VOCAB_SIZE)


def keys(*rows: tuple[int, int, int, int]) -> list[jax.Array]:
    return [jnp.asarray(column, jnp.uint32) for column in zip(*rows, strict=True)]


def test_logarithm_and_exponential_are_accurate() -> None:
    x = np.exp(np.linspace(-22, 3, 50_001)).astype(np.float32)
    exact = np.log(x.astype(np.float64))
    assert np.max(np.abs(np.asarray(floats.log(jnp.asarray(x))) - exact)) < 2e-6
    y = -np.linspace(0, 86, 50_001).astype(np.float32)
    exact = np.exp(y.astype(np.float64))
    assert np.max(np.abs(np.asarray(floats.exp(jnp.asarray(y))) / exact - 1)) < 2e-7
    assert float(floats.exp(jnp.float32(-np.inf))) == 0.0


def test_rank_orders_floats_and_inverts() -> None:
    x = np.array([-np.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 1.5, 3e38, np.inf], np.float32)
    ranks = np.asarray(floats.to_rank(jnp.asarray(x)))
    assert np.all(np.diff(ranks.astype(np.int64)) > 0)
    np.testing.assert_array_equal(np.asarray(floats.from_rank(jnp.asarray(ranks))), x)


def test_threefry_gives_the_published_answers() -> None:
    # Known answers of Random123's kat_vectors, threefry2x32 with 20 rounds.
    vectors = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ]
    for key, counter, expected in vectors:
        first, second = threefry(
            (jnp.uint32(key[0]), jnp.uint32(key[1])),
            (jnp.uint32(counter[0]), jnp.uint32(counter[1])),
        )
        assert (int(first), int(second)) == expected


def test_extreme_bits_give_finite_noise_up_to_the_far_tail() -> None:
    bits = np.array([0, 1, 0x4AEFFFFF, 0x4AF00000, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF], np.uint32)
    unit = (bits.astype(np.float64) + 0.5) / 2.0**32
    exact = -np.log(-np.log1p(-unit))
    np.testing.assert_allclose(np.asarray(gumbel_from_bits(jnp.asarray(bits))), exact, rtol=2e-6)
    assert exact[0] > 22


def test_noise_has_the_moments_of_the_gumbel_distribution() -> None:
    rows = [(seed, 3, 0, position) for seed in range(20) for position in range(100)]
    noise = np.asarray(noise_of(*keys(*rows))).astype(np.float64)
    num = noise.size
    deviation = np.pi / np.sqrt(6)
    assert abs(noise.mean() - np.euler_gamma) < 5 * deviation / np.sqrt(num)
    assert abs(noise.std() / deviation - 1) < 0.01
    # Tokens, positions and seeds next to each other share nothing.
    for axis in (0, 1):
        a = np.take(noise, range(noise.shape[axis] - 1), axis).ravel()
        b = np.take(noise, range(1, noise.shape[axis]), axis).ravel()
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(num)


@pytest.mark.parametrize("other", [(8, 9, 0, 4), (7, 8, 0, 4), (7, 9, 1, 4), (7, 9, 0, 5)])
def test_each_part_of_the_key_changes_the_noise(other: tuple[int, int, int, int]) -> None:
    noise = np.asarray(noise_of(*keys((7, 9, 0, 4), other)))
    assert np.mean(noise[0] == noise[1]) < 0.02


def test_noise_has_the_same_bits_alone_and_in_a_batch_of_any_size() -> None:
    rows = [(7, 9, choice, position) for choice in range(3) for position in range(11)]
    batch = np.asarray(noise_of(*keys(*rows)))
    for index in (0, 10, 32):
        np.testing.assert_array_equal(np.asarray(noise_of(*keys(rows[index])))[0], batch[index])


def test_noise_has_the_bits_that_every_version_must_give() -> None:
    """A change here changes what a seed means: streams could not move between versions."""
    noise = np.asarray(noise_of(*keys((0x89ABCDEF, 0x01234567, 2, 77))))[0]
    golden = [0x3EF790BF, 0x406B37F4, 0x4010589D, 0x3F24D266, 0x3FE4E448, 0xBF8EDFA0]
    assert [int(bits) for bits in noise[[0, 1, 2, 99, 198, 199]].view(np.uint32)] == golden

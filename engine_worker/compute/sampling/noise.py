"""The noise of a draw: a Gumbel number for each (seed, choice, position, token id).

There is no generator state. The same four numbers give the same bits in any batch, row, program,
process and engine, so a choice can be continued elsewhere, and `argmax(logits / temperature +
noise)` is a draw from the softmax (the Gumbel-max trick, arXiv 1411.0030).
"""

from typing import Final

import jax
import jax.numpy as jnp

from engine_worker.compute.sampling.floats import (
    log,
    log_of_parts,
    scale_by_power_of_two,
    split_mantissa,
)

_ROTATIONS: Final = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY: Final = 0x1BD11BDA
_NEAR_ONE: Final = 0x4AF00000  # below 0.2928 * 2**32


def threefry(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC 2011): uint32 in, uint32 out, elementwise."""
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    first, second = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = (second << rotation) | (second >> (32 - rotation))
            second = second ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def token_bits(row_key: tuple[jax.Array, jax.Array], token_ids: jax.Array) -> jax.Array:
    """32 random bits for each token of each row.

    Two rounds of a full-avalanche integer hash (constants of Wellons' `lowbias32`), one half of the
    row's key before each: far cheaper per token than Threefry, which already made the keys.

    Args:
        row_key: Two uint32 arrays, [R, 1] each.
        token_ids: [V] uint32.

    Returns:
        [R, V] uint32.
    """
    bits: jax.Array = token_ids[None, :] * jnp.uint32(0x9E3779B1)
    for part in row_key:
        bits = bits ^ part
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(0xD35A2D97)
        bits = bits ^ (bits >> 15)
    return bits


def gumbel_from_bits(bits: jax.Array) -> jax.Array:
    """uint32 to standard Gumbel numbers: -log(-log(U)) with U = 1 - (bits + 1/2) / 2**32.

    Close to U = 1, where the large numbers come from, log(U) is taken from 1 - U directly, so the
    tail reaches 22.8 with full precision.
    """
    from_one = scale_by_power_of_two(bits.astype(jnp.float32) + 0.5, -32)
    t, exponent = split_mantissa((~bits).astype(jnp.float32) + 0.5)
    near_one = bits < _NEAR_ONE
    exponential = -log_of_parts(
        jnp.where(near_one, -from_one, t), jnp.where(near_one, 0, exponent - 32)
    )
    return -log(exponential)


def gumbel_noise(
    seeds: tuple[jax.Array, jax.Array], choices: jax.Array, positions: jax.Array, vocab_size: int
) -> jax.Array:
    """The noise of whole rows.

    Args:
        seeds: Low and high half of each row's 64-bit seed, [R] uint32 each.
        choices: [R] uint32.
        positions: [R] uint32, of the token to be drawn.
        vocab_size: V.

    Returns:
        [R, V] float32.
    """
    first, second = threefry(seeds, (positions, choices))
    token_ids = jnp.arange(vocab_size, dtype=jnp.uint32)
    return gumbel_from_bits(token_bits((first[:, None], second[:, None]), token_ids))

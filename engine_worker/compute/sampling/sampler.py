"""From logits to token ids: penalties, temperature, top-k, top-p, min-p, Gumbel noise, argmax.

The order is vLLM's. What no row asks for is skipped at run time, inside one program; a row's token
depends on nothing but the row's own logits, parameters and counts, so it is the same whichever
branches the other rows open.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.compute.sampling.filters import is_filtered, lowest_allowed
from engine_worker.compute.sampling.noise import gumbel_noise
from engine_worker.compute.sampling.params import GREEDY_TEMPERATURE, SamplingRows
from engine_worker.compute.sampling.penalties import penalize, uses_penalties

NOT_SAMPLED: Final = -1
NAN_LOGITS: Final = -2
"""In place of a token id: the row's logits hold NaN or infinity."""

WITHOUT_CHOICE: Final = -3
"""In place of a token id: no token of the row is allowed."""

_MAX_PART_SIZE: Final = 512
"""The longest part of a row that is searched entry by entry for its maximum."""


def sample_tokens(logits: jax.Array, counts: jax.Array, rows: SamplingRows) -> jax.Array:
    """Chooses one token per row.

    Args:
        logits: [R, V] float32.
        counts: [S, V] int32 token counts by slot; read only for rows with penalties.
        rows: R rows of parameters.

    Returns:
        [R] int32 token ids, `NOT_SAMPLED` or `NAN_LOGITS`. The lowest id wins a tie.
    """
    # A masked token's minus infinity is fine.
    has_nan = jnp.any(~(logits < jnp.inf), axis=1)
    is_random = rows.temperatures >= GREEDY_TEMPERATURE
    has_penalties = jnp.any(uses_penalties(rows))

    def choose_from_scores() -> jax.Array:
        penalized = lax.cond(
            has_penalties,
            lambda: penalize(logits, counts.at[rows.slots].get(mode="clip"), rows),
            lambda: logits,
        )
        tokens: jax.Array = lax.cond(
            jnp.any(is_random),
            lambda: first_of_maximum(_noisy_scores(penalized, is_random, rows)),
            lambda: first_of_maximum(penalized),
        )
        return tokens

    tokens = lax.cond(
        jnp.any(is_random) | has_penalties,
        choose_from_scores,
        # Apart, because the result of an inner branch would be a copy of all logits.
        lambda: first_of_maximum(logits),
    )
    tokens = jnp.where(has_nan, NAN_LOGITS, tokens)
    return jnp.where(rows.sampled, tokens, NOT_SAMPLED)


def needs_scores(rows: SamplingRows) -> jax.Array:
    """[R] bool: the row's token is another than its likeliest one, or may be."""
    is_random = rows.temperatures >= GREEDY_TEMPERATURE
    return rows.sampled & (is_random | uses_penalties(rows))


def count_sampled(counts: jax.Array, tokens: jax.Array, rows: SamplingRows) -> jax.Array:
    """Counts [S, V] with each row's new token in its slot; padding rows count nothing."""
    amounts = (tokens >= 0).astype(jnp.int32)
    return counts.at[rows.slots, jnp.maximum(tokens, 0)].add(amounts, mode="drop")


def first_of_maximum(scores: jax.Array) -> jax.Array:
    """Index of the largest entry of each row, the lowest on a tie: [R, V] to [R] int32.

    One pass for the maximum of each part of a row, then a search in the first part that has the
    row's. Always in range; of no meaning for a row with NaN.
    """
    num_rows, vocab_size = scores.shape
    part_size = max(size for size in range(1, _MAX_PART_SIZE + 1) if vocab_size % size == 0)
    parts = scores.reshape(num_rows, vocab_size // part_size, part_size)
    part_ids = _first_at_maximum(jnp.max(parts, axis=2))
    chosen = jnp.take_along_axis(parts, part_ids[:, None, None], axis=1, mode="promise_in_bounds")
    return part_ids * part_size + _first_at_maximum(chosen[:, 0])


def _first_at_maximum(scores: jax.Array) -> jax.Array:
    """`first_of_maximum` in two passes and with an array of ids as large as the scores.

    XLA:CPU compiles an argmax to a scalar loop; a maximum and a minimum are vectorised.
    """
    last_id = scores.shape[1] - 1
    ids = jnp.arange(scores.shape[1], dtype=jnp.int32)
    at_maximum = scores == jnp.max(scores, axis=1, keepdims=True)
    # Without an equal entry (NaN) the last id stands in, so that the result is always in range.
    return jnp.min(jnp.where(at_maximum, ids, last_id), axis=1)


def _noisy_scores(logits: jax.Array, is_random: jax.Array, rows: SamplingRows) -> jax.Array:
    """Scores [R, V] whose maximum is the draw; a greedy row keeps its logits."""
    scores = logits / jnp.where(is_random, rows.temperatures, 1.0)[:, None]
    filtered = is_filtered(rows)
    bound = lax.cond(
        jnp.any(filtered & is_random),
        lambda: jnp.where(filtered, lowest_allowed(scores, rows), -jnp.inf),
        lambda: jnp.full(rows.top_ps.shape, -jnp.inf, jnp.float32),
    )
    noise = gumbel_noise(
        (rows.seeds_low, rows.seeds_high), rows.choices, rows.positions, logits.shape[1]
    )
    noisy = jnp.where(scores >= bound[:, None], scores + noise, -jnp.inf)
    return jnp.where(is_random[:, None], noisy, logits)

"""Log probabilities that the model itself gave: of one token a row, and of the likeliest ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class LogprobRows(NamedTuple):
    """One entry per row of a program.

    Attributes:
        logprobs: [R] float32, natural logarithm, of the row's token.
        ranks: [R] int32, 1 plus the number of tokens that are likelier.
        top_token_ids: [R, N] int32, the likeliest tokens, best first, the lowest id of a tie.
        top_logprobs: [R, N] float32.
        wanted: [R, K] float32, of some more tokens.
    """

    logprobs: jax.Array
    ranks: jax.Array
    top_token_ids: jax.Array
    top_logprobs: jax.Array
    wanted: jax.Array


def score_tokens(
    logits: jax.Array, token_ids: jax.Array, num_top: int, wanted_ids: jax.Array
) -> LogprobRows:
    """Scores one token of each row against the softmax of the row.

    Args:
        logits: [R, V] float32 as the model computed them.
        token_ids: [R] int32; a negative id is scored like 0.
        num_top: N, at most V.
        wanted_ids: [R, K] int32, more tokens to score.

    Returns:
        The scores.
    """
    log_sum = jax.nn.logsumexp(logits, axis=1)
    chosen = jnp.take_along_axis(logits, jnp.maximum(token_ids, 0)[:, None], axis=1)
    ranks = 1 + jnp.sum((logits > chosen).astype(jnp.int32), axis=1)
    top, top_token_ids = lax.top_k(logits, num_top)
    wanted = jnp.take_along_axis(logits, wanted_ids, axis=1)
    return LogprobRows(
        chosen[:, 0] - log_sum,
        ranks,
        top_token_ids.astype(jnp.int32),
        top - log_sum[:, None],
        wanted - log_sum[:, None],
    )


def no_scores(num_rows: int, num_top: int, num_wanted: int) -> LogprobRows:
    """What stands in the place of scores that nobody wants: zeros."""
    return LogprobRows(
        jnp.zeros(num_rows, jnp.float32),
        jnp.zeros(num_rows, jnp.int32),
        jnp.zeros((num_rows, num_top), jnp.int32),
        jnp.zeros((num_rows, num_top), jnp.float32),
        jnp.zeros((num_rows, num_wanted), jnp.float32),
    )

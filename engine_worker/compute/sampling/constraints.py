"""Changes to logits that a request asks for by token id: a bias on some, a mask over all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_WORD_BITS = 32


class ConstraintRows(NamedTuple):
    """One entry per row of a program.

    Attributes:
        is_biased: [R] bool, whether the row has a bias.
        bias_token_ids: [R, B] int32, each id once; an id outside the vocabulary is padding.
        bias_values: [R, B] float32.
        is_masked: [R] bool, whether the row has a mask.
        allowed: [R, W] uint32, see `engine_worker.core.choice.token_mask.MaskWords`.
    """

    is_biased: jax.Array
    bias_token_ids: jax.Array
    bias_values: jax.Array
    is_masked: jax.Array
    allowed: jax.Array


def constrain(logits: jax.Array, rows: ConstraintRows) -> jax.Array:
    """Adds biases, then sets what is not allowed to minus infinity.

    Args:
        logits: [R, V] float32.
        rows: The constraints.

    Returns:
        [R, V] float32; a row without constraints keeps its bits.
    """
    logits = lax.cond(jnp.any(rows.is_biased), lambda: _add_bias(logits, rows), lambda: logits)
    logits = lax.cond(jnp.any(rows.is_masked), lambda: _mask(logits, rows), lambda: logits)
    return logits


def _add_bias(logits: jax.Array, rows: ConstraintRows) -> jax.Array:
    row = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    ids = jnp.where(rows.is_biased[:, None], rows.bias_token_ids, logits.shape[1])
    return logits.at[row, ids].add(rows.bias_values, mode="drop")


def _mask(logits: jax.Array, rows: ConstraintRows) -> jax.Array:
    num_rows, vocab_size = logits.shape
    bits = rows.allowed[:, :, None] >> jnp.arange(_WORD_BITS, dtype=jnp.uint32)
    allowed = (bits & 1).reshape(num_rows, -1)[:, :vocab_size] != 0
    return jnp.where(allowed | ~rows.is_masked[:, None], logits, -jnp.inf)

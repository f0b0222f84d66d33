"""Penalties on tokens that a request has already seen, and the counts that they need."""

from collections.abc import Sequence
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.compute.sampling.params import SamplingRows

PROMPT_FLAG: Final = 1 << 30
"""Added to the count of a token that stands in the prompt; the bits below count the output."""


def count_tokens(
    prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], vocab_size: int
) -> npt.NDArray[np.int32]:
    """The counts of one slot from the request's tokens: [V] int32, on the host."""
    counts = np.zeros(vocab_size, np.int32)
    np.add.at(counts, np.asarray(output_token_ids, np.int64), 1)
    counts[np.unique(np.asarray(prompt_token_ids, np.int64))] += PROMPT_FLAG
    return counts


def uses_penalties(rows: SamplingRows) -> jax.Array:
    """[R] bool."""
    return (
        (rows.presence_penalties != 0.0)
        | (rows.frequency_penalties != 0.0)
        | (rows.repetition_penalties != 1.0)
    )


def penalize(logits: jax.Array, counts: jax.Array, rows: SamplingRows) -> jax.Array:
    """Applies repetition (arXiv 1909.05858), then frequency and presence penalties (OpenAI).

    Repetition looks at prompt and output; frequency and presence at the output only.

    Args:
        logits: [R, V] float32.
        counts: [R, V] int32, see `PROMPT_FLAG`.
        rows: The penalties.

    Returns:
        [R, V] float32; rows without penalties keep their bits.
    """
    num_outputs = counts & (PROMPT_FLAG - 1)
    repetition = rows.repetition_penalties[:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    logits = logits - num_outputs.astype(jnp.float32) * rows.frequency_penalties[:, None]
    return logits - jnp.where(num_outputs > 0, rows.presence_penalties[:, None], 0.0)

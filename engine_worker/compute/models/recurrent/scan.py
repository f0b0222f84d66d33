"""Goes through the tokens of each row: one after the other, or some at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine_worker.compute.models.recurrent.state import Inputs

CHUNK_SIZE: Final = 32
"""Tokens that are computed at once: the cost of a token beside the others grows with it, that of
going from one chunk to the next falls."""

_LEAST_LOG = -200.0
"""exp of this is 0 in float32, as it is of everything below; sums of it stay finite."""

OneToken = Callable[[jax.Array, Inputs], tuple[jax.Array, jax.Array]]
"""`(memory [B, ...], inputs of one token of each row [B, ...]) -> (output [B, ...], memory)`."""

OneChunk = Callable[[jax.Array, Inputs], tuple[jax.Array, jax.Array]]
"""`(memory [B, ...], inputs of a chunk [B, C, ...]) -> (outputs [B, C, ...], memory)`.

Equal to C calls of `OneToken` but for rounding. Tokens whose inputs are all zero leave the memory.
"""

product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
"""In float32 on every device: a memory adds up over the whole sequence."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A memory that each token forgets some of and writes to.

    Attributes:
        one_token: Its definition.
        one_chunk: The same in products of matrices, for prompts.
    """

    one_token: OneToken
    one_chunk: OneChunk

    def __call__(
        self, memory: jax.Array, inputs: Inputs, is_token: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes some tokens of each row in the faster way.

        Args:
            memory: [B, ...] float32.
            inputs: [B, S, ...] float32 each.
            is_token: [B, S] bool, tokens first.

        Returns:
            [B, S, ...] float32, noise for padding; and the memory after each row's last token.
        """
        if is_token.shape[1] == 1:
            return each_token(self.one_token, memory, inputs, is_token)
        return each_chunk(self.one_chunk, memory, inputs, is_token)


def each_token(
    one_token: OneToken, memory: jax.Array, inputs: Inputs, is_token: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes a recurrence as it is defined; takes and returns what `Recurrence` does."""

    def at(index: jax.Array | int) -> Inputs:
        return tuple(lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in inputs)

    def compute(
        index: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        memory, outputs = carry
        output, new_memory = one_token(memory, at(index))
        is_now = lax.dynamic_index_in_dim(is_token, index, 1, keepdims=False)
        outputs = lax.dynamic_update_index_in_dim(outputs, output, index, 1)
        return jnp.where(_rows_like(is_now, memory), new_memory, memory), outputs

    output, _ = jax.eval_shape(lambda: one_token(memory, at(0)))
    shape = (output.shape[0], is_token.shape[1], *output.shape[1:])
    carry = (memory, jnp.zeros(shape, output.dtype))
    memory, outputs = lax.fori_loop(0, _longest(is_token), compute, carry)
    return outputs, memory


def each_chunk(
    one_chunk: OneChunk,
    memory: jax.Array,
    inputs: Inputs,
    is_token: jax.Array,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[jax.Array, jax.Array]:
    """Computes a recurrence chunk by chunk; takes and returns what `Recurrence` does."""
    num_tokens = is_token.shape[1]
    size = min(chunk_size, num_tokens)
    missing = -num_tokens % size
    is_token = _padded(is_token, missing)
    # Whatever padding holds, zeros neither write nor forget.
    inputs = tuple(
        jnp.where(_rows_like(is_token, x), x, 0.0) for x in (_padded(x, missing) for x in inputs)
    )

    def at(x: jax.Array, index: jax.Array | int) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, index * size, size, axis=1)

    def compute(
        index: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        memory, outputs = carry
        output, new_memory = one_chunk(memory, tuple(at(x, index) for x in inputs))
        is_now = jnp.any(at(is_token, index), axis=1)
        outputs = lax.dynamic_update_slice_in_dim(outputs, output, index * size, axis=1)
        return jnp.where(_rows_like(is_now, memory), new_memory, memory), outputs

    output, _ = jax.eval_shape(lambda: one_chunk(memory, tuple(at(x, 0) for x in inputs)))
    shape = (output.shape[0], is_token.shape[1], *output.shape[2:])
    num_chunks = (_longest(is_token) + size - 1) // size
    carry = (memory, jnp.zeros(shape, output.dtype))
    memory, outputs = lax.fori_loop(0, num_chunks, compute, carry)
    return outputs[:, :num_tokens], memory


def kept_since(forgets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is left of a memory some tokens later.

    Sums of the very tokens between two: a difference of sums from the start would lose a small
    decay behind large ones.

    Args:
        forgets: [B, C, H] float32, logarithms of what each token keeps, at most 0.

    Returns:
        [B, H, C], after each token, of what was there before the chunk; and [B, H, C, C], after
        token i, of what token j wrote: 1 for i = j, 0 for a later j.
    """
    num_tokens = forgets.shape[1]
    tokens = np.arange(num_tokens)
    is_seen = tokens[:, None] >= tokens
    # Column j of a sum has the tokens behind j; the one before the first has all of them.
    is_behind = tokens[:, None] > np.arange(-1, num_tokens)
    logs = jnp.where(is_behind[None, :, None], jnp.maximum(forgets, _LEAST_LOG)[..., None], 0.0)
    kept = jnp.exp(product("it,bthj->bhij", jnp.asarray(is_seen, jnp.float32), logs))
    return kept[..., 0], jnp.where(is_seen, kept[..., 1:], 0.0)


def _longest(is_token: jax.Array) -> jax.Array:
    return jnp.max(jnp.sum(is_token, axis=1, dtype=jnp.int32))


def _rows_like(rows: jax.Array, x: jax.Array) -> jax.Array:
    """With the axes of another array, whose first ones it has."""
    return rows.reshape(*rows.shape, *([1] * (x.ndim - rows.ndim)))


def _padded(x: jax.Array, num_more: int) -> jax.Array:
    """With more tokens behind."""
    return jnp.pad(x, ((0, 0), (0, num_more), *([(0, 0)] * (x.ndim - 2)))) if num_more else x

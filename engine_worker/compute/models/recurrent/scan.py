"""Goes through the tokens of each row, one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from engine_worker.compute.models.recurrent.state import Inputs

OneToken = Callable[[jax.Array, Inputs], tuple[jax.Array, jax.Array]]
"""`(memory [B, ...], inputs of one token of each row [B, ...]) -> (output [B, ...], memory)`."""


def each_token(
    one_token: OneToken, memory: jax.Array, inputs: Inputs, is_token: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes a recurrence as it is defined.

    Args:
        one_token: Of the recurrence.
        memory: [B, ...] float32.
        inputs: [B, S, ...] float32 each.
        is_token: [B, S] bool, tokens first.

    Returns:
        [B, S, ...] float32, zeros behind the longest row; and the memory after each row's last
        token.
    """

    def at(index: jax.Array | int) -> Inputs:
        return tuple(lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in inputs)

    def compute(
        index: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        memory, outputs = carry
        output, new_memory = one_token(memory, at(index))
        is_now = lax.dynamic_index_in_dim(is_token, index, 1, keepdims=False)
        is_now = is_now.reshape(-1, *([1] * (memory.ndim - 1)))
        outputs = lax.dynamic_update_index_in_dim(outputs, output, index, 1)
        return jnp.where(is_now, new_memory, memory), outputs

    output, _ = jax.eval_shape(lambda: one_token(memory, at(0)))
    shape = (output.shape[0], is_token.shape[1], *output.shape[1:])
    num_tokens = jnp.max(jnp.sum(is_token, axis=1, dtype=jnp.int32))
    carry = (memory, jnp.zeros(shape, output.dtype))
    memory, outputs = lax.fori_loop(0, num_tokens, compute, carry)
    return outputs, memory

"""The gated delta net of Qwen3-Next and Qwen3.5 (arXiv 2412.06464)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Linear, ResidualBlock, RmsNorm
from engine_worker.compute.models.recurrent.scan import each_token
from engine_worker.compute.models.recurrent.short_conv import CausalConv
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.recurrent.state import Inputs, Recur, State
from engine_worker.compute.models.spec import DecoderSpec

_NORM_EPS = 1e-6
"""Of the norms of queries and keys, whatever the model's other norms add."""


class DeltaNetBlock(ResidualBlock):
    """Norm, projections, convolution, delta rule, gated norm, output projection.

    One product gives queries, keys and values for the convolution, the gate of the output, and for
    each value head how strongly it corrects and how much it forgets.
    """

    def __init__(self, spec: DecoderSpec, delta: DeltaNetSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=True)
        hidden, num_heads = spec.hidden_size, delta.num_value_heads
        self.spec = delta
        width = delta.channels + delta.values_size + 2 * num_heads
        self.in_proj = Linear(width, hidden, dtype, bias=False)
        self.conv = CausalConv(delta.channels, delta.kernel_size, dtype, bias=False)
        # Small, and an exponent each: rounding them would move all that is remembered.
        self.decay = nnx.Param(jnp.zeros((num_heads,), jnp.float32))
        self.time_bias = nnx.Param(jnp.zeros((num_heads,), jnp.float32))
        self.out_norm = RmsNorm(delta.value_dim, delta.norm_eps or spec.norm_eps, dtype)
        self.out_proj = Linear(hidden, delta.values_size, dtype, bias=False)

    def __call__(self, layer: int, x: jax.Array, recur: Recur) -> jax.Array:
        """What the mixer adds to the residual x [T, hidden] float32: [T, hidden] float32."""
        spec, num_tokens = self.spec, x.shape[0]
        heads = (num_tokens, spec.num_value_heads, spec.value_dim)
        gate_end = spec.channels + spec.values_size
        mixed, gate, strength, time = jnp.split(
            self.in_proj(self.normed(x)),
            [spec.channels, gate_end, gate_end + spec.num_value_heads],
            axis=-1,
        )
        forgets = -jnp.exp(self.decay[...]) * jax.nn.softplus(time + self.time_bias[...])
        inputs = (mixed, spec.max_strength * jax.nn.sigmoid(strength), forgets)
        recalled = self.out_norm(recur(layer, inputs, self._advance))
        gated = recalled * jax.nn.silu(gate.reshape(heads))
        return self.added(self.out_proj(gated.reshape(num_tokens, spec.values_size)))

    def _advance(
        self, state: State, inputs: Inputs, is_token: jax.Array
    ) -> tuple[jax.Array, State]:
        (tail, memory), (mixed, strength, forgets) = state, inputs
        spec, shape = self.spec, is_token.shape
        mixed, tail = self.conv(tail, mixed, is_token)
        q, k, v = jnp.split(jax.nn.silu(mixed), [spec.keys_size, 2 * spec.keys_size], axis=-1)
        q = _unit(q.reshape(*shape, spec.num_key_heads, spec.key_dim)) * spec.key_dim**-0.5
        k = _unit(k.reshape(*shape, spec.num_key_heads, spec.key_dim))
        shared_by = spec.num_value_heads // spec.num_key_heads
        q, k = jnp.repeat(q, shared_by, axis=2), jnp.repeat(k, shared_by, axis=2)
        v = v.reshape(*shape, spec.num_value_heads, spec.value_dim)
        inputs = (q, k, v, strength, jnp.exp(forgets))
        outputs, memory = each_token(_one_token, memory, inputs, is_token)
        return outputs, (tail, memory)


def _one_token(memory: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """The gated delta rule for one token of each row.

    Args:
        memory: [B, H, K, V] float32.
        inputs: Query and key [B, H, K], value [B, H, V], strength of the correction and what is
            kept of the memory [B, H].

    Returns:
        [B, H, V] float32, and the new memory.
    """
    q, k, v, strength, kept = inputs
    memory = memory * kept[..., None, None]
    recalled = jnp.sum(memory * k[..., None], axis=-2)
    correction = (v - recalled) * strength[..., None]
    memory = memory + k[..., None] * correction[..., None, :]
    return jnp.sum(memory * q[..., None], axis=-2), memory


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1."""
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _NORM_EPS)

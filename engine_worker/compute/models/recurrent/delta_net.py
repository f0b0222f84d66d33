"""The gated delta net of Qwen3-Next and Qwen3.5 (arXiv 2412.06464)."""

from typing import Final

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Linear, ResidualBlock, RmsNorm
from engine_worker.compute.models.recurrent.delta_rule import delta_rule
from engine_worker.compute.models.recurrent.short_conv import CausalConv
from engine_worker.compute.models.recurrent.specs import DeltaNetSpec
from engine_worker.compute.models.recurrent.state import Inputs, Recur, State
from engine_worker.compute.models.spec import DecoderSpec

NORM_EPS: Final = 1e-6
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
        v = v.reshape(*shape, spec.num_value_heads, spec.value_dim)
        outputs, memory = delta_rule(memory, (q, k, v, strength, forgets), is_token)
        return outputs, (tail, memory)


def _unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1."""
    return x * lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS)

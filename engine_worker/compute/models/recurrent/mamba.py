"""Mamba-2 as the hybrids of Granite, Bamba and others have it (arXiv 2405.21060)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Block, Linear, ResidualBlock, rms_normed
from engine_worker.compute.models.recurrent.short_conv import CausalConv
from engine_worker.compute.models.recurrent.specs import MambaSpec
from engine_worker.compute.models.recurrent.state import Inputs, Recur, State
from engine_worker.compute.models.recurrent.state_space import state_space
from engine_worker.compute.models.spec import DecoderSpec


class GatedGroupNorm(Block):
    """A gate, then an RMS norm over each of some equal groups of the last axis.

    Or the norm first, or the gate alone.
    """

    def __init__(self, mamba: MambaSpec, eps: float, dtype: DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((mamba.inner_size,), dtype)) if mamba.norm_groups else None
        self.num_groups = mamba.norm_groups
        self.is_first = mamba.is_normed_first
        self.eps = eps

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        """[T, size] float32 of x and gate, both [T, size] float32."""
        gate = jax.nn.silu(gate)
        return self._normed(x) * gate if self.is_first else self._normed(x * gate)

    def _normed(self, x: jax.Array) -> jax.Array:
        if self.weight is None:
            return x
        groups = rms_normed(x.reshape(x.shape[0], self.num_groups, -1), self.eps)
        weight: jax.Array = self.weight[...].astype(jnp.float32)
        return groups.reshape(x.shape) * weight


class MambaBlock(ResidualBlock):
    """Norm, projection, convolution, state space, gated norm, output projection.

    One product gives the gate, what goes through the convolution, and each head's step in time.
    """

    def __init__(self, spec: DecoderSpec, mamba: MambaSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=True)
        hidden, inner, heads = spec.hidden_size, mamba.inner_size, (mamba.num_heads,)
        self.spec = mamba
        width = inner + mamba.channels + mamba.num_heads
        self.in_proj = Linear(width, hidden, dtype, bias=mamba.proj_bias)
        self.conv = CausalConv(mamba.channels, mamba.kernel_size, dtype, bias=mamba.conv_bias)
        # Small, and an exponent each: rounding them would move all that is remembered.
        self.decay = nnx.Param(jnp.zeros(heads, jnp.float32))
        self.time_bias = nnx.Param(jnp.zeros(heads, jnp.float32))
        self.passed = nnx.Param(jnp.zeros(heads, jnp.float32))
        self.out_norm = GatedGroupNorm(mamba, spec.norm_eps, dtype)
        self.out_proj = Linear(hidden, inner, dtype, bias=mamba.out_bias)

    def __call__(self, layer: int, x: jax.Array, recur: Recur) -> jax.Array:
        """What the mixer adds to the residual x [T, hidden] float32: [T, hidden] float32."""
        spec, num_tokens = self.spec, x.shape[0]
        gate, mixed, time = jnp.split(
            self._multiplied(self.in_proj(self.normed(x))),
            [spec.inner_size, spec.inner_size + spec.channels],
            axis=-1,
        )
        time = jnp.clip(jax.nn.softplus(time + self.time_bias[...]), *spec.time_limits)
        y = recur(layer, (mixed, time), self._advance)
        return self.added(self.out_proj(self.out_norm(y.reshape(num_tokens, -1), gate)))

    def forgets(self, time: jax.Array) -> jax.Array:
        """The logarithm of what each head keeps of its memory over some time [..., H] float32."""
        kept: jax.Array = -jnp.exp(self.decay[...]) * time
        return kept

    def _multiplied(self, projected: jax.Array) -> jax.Array:
        spec = self.spec
        if set(spec.multipliers) == {1.0}:
            return projected
        sizes = (spec.inner_size, spec.inner_size, *[spec.group_size] * 2, spec.num_heads)
        return projected * jnp.asarray(np.repeat(np.asarray(spec.multipliers, np.float32), sizes))

    def _advance(
        self, state: State, inputs: Inputs, is_token: jax.Array
    ) -> tuple[jax.Array, State]:
        (tail, memory), (mixed, time) = state, inputs
        spec, shape = self.spec, is_token.shape
        mixed, tail = self.conv(tail, mixed, is_token)
        values, writes, reads = jnp.split(
            jax.nn.silu(mixed), [spec.inner_size, spec.inner_size + spec.group_size], axis=-1
        )
        values = values.reshape(*shape, spec.num_heads, spec.head_dim)
        groups = (*shape, spec.num_groups, spec.state_size)
        written = (values * time[..., None], writes.reshape(groups), reads.reshape(groups))
        inputs = (*written, self.forgets(time))
        outputs, memory = state_space(memory, inputs, is_token)
        return outputs + values * self.passed[...][:, None], (tail, memory)

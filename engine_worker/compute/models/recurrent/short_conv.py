"""Short convolutions: a depthwise causal convolution by itself, and the gated block of LFM2."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Block, Linear, ResidualBlock
from engine_worker.compute.models.recurrent.specs import ShortConvSpec
from engine_worker.compute.models.recurrent.state import Inputs, Recur, State
from engine_worker.compute.models.spec import DecoderSpec


class CausalConv(Block):
    """A convolution of each channel over its last tokens; weights [channels, 1, kernel]."""

    def __init__(self, channels: int, kernel_size: int, dtype: DTypeLike, *, bias: bool) -> None:
        self.weight = nnx.Param(jnp.zeros((channels, 1, kernel_size), dtype))
        self.bias = nnx.Param(jnp.zeros((channels,), dtype)) if bias else None

    def __call__(
        self, tail: jax.Array, x: jax.Array, is_token: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Convolves some tokens after those that the tail remembers.

        Args:
            tail: [B, kernel - 1, channels] float32, the inputs before these, oldest first.
            x: [B, S, channels] float32.
            is_token: [B, S] bool, tokens first.

        Returns:
            [B, S, channels] float32, and the tail after each row's last token.
        """
        weight = self.weight[...].astype(jnp.float32)
        num_before, num_tokens = tail.shape[1], x.shape[1]
        seen = jnp.concatenate([tail, x], axis=1)
        # Written out: the kernel has three or four taps, and every row adds in the same order.
        y = seen[:, :num_tokens] * weight[:, 0, 0]
        for tap in range(1, num_before + 1):
            y += seen[:, tap : tap + num_tokens] * weight[:, 0, tap]
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        ends = jnp.sum(is_token, axis=1, dtype=jnp.int32)
        last = ends[:, None] + jnp.arange(num_before, dtype=jnp.int32)
        return y, jnp.take_along_axis(seen, last[:, :, None], axis=1)


class ShortConvBlock(ResidualBlock):
    """Norm, input projection into two gates and values, gated convolution, output projection."""

    def __init__(self, spec: DecoderSpec, conv: ShortConvSpec, dtype: DTypeLike) -> None:
        super().__init__(spec, dtype, is_first=True)
        hidden, channels, bias = spec.hidden_size, conv.channels, conv.bias
        self.in_proj = Linear(3 * channels, hidden, dtype, bias=bias)
        self.conv = CausalConv(channels, conv.kernel_size, dtype, bias=bias)
        self.out_proj = Linear(hidden, channels, dtype, bias=bias)

    def __call__(self, layer: int, x: jax.Array, recur: Recur) -> jax.Array:
        """What the mixer adds to the residual x [T, hidden] float32: [T, hidden] float32."""
        before, after, values = jnp.split(self.in_proj(self.normed(x)), 3, axis=-1)
        return self.added(self.out_proj(after * recur(layer, (before * values,), self._advance)))

    def _advance(
        self, state: State, inputs: Inputs, is_token: jax.Array
    ) -> tuple[jax.Array, State]:
        (tail,), (values,) = state, inputs
        convolved, tail = self.conv(tail, values, is_token)
        return convolved, (tail,)

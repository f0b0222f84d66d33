"""Several residuals of which each layer computes one: AltUp, and LAuReL beside it (Gemma 3n).

A layer predicts all residuals from those before it, computes one of them, and corrects all by what
came out. AltUp is arXiv 2301.13310, LAuReL arXiv 2411.07501.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import Block, Linear, RmsNorm
from engine_worker.compute.models.spec import AltUpSpec, DecoderSpec

_LEAST_MEAN_SQUARE = 1e-5


class Streams(Block):
    """Makes residuals of the embedding, and hidden states of the residuals."""

    def __init__(self, spec: DecoderSpec, alt_up: AltUpSpec, dtype: DTypeLike) -> None:
        hidden, others = spec.hidden_size, range(1, alt_up.num_streams)
        self.projections = nnx.List([Linear(hidden, hidden, dtype, bias=False) for _ in others])
        self.returns = nnx.List([Linear(hidden, hidden, dtype, bias=False) for _ in others])

    def begin(self, x: jax.Array) -> jax.Array:
        """Residuals [T, streams, hidden] float32 of embeddings [T, hidden] float32."""
        others = [_as_large_as(x, product(x)) for product in self.projections]
        return jnp.stack([x, *others], axis=1)

    def end(self, x: jax.Array) -> jax.Array:
        """[T, hidden] float32, before the last norm, of residuals [T, streams, hidden]."""
        first = x[:, 0]
        others = [
            _as_large_as(first, product(x[:, 1 + index]))
            for index, product in enumerate(self.returns)
        ]
        return jnp.mean(jnp.stack([first, *others]), axis=0)


class AltUp(Block):
    """What one layer does with the residuals round its attention and MLP."""

    def __init__(self, spec: DecoderSpec, alt_up: AltUpSpec, dtype: DTypeLike) -> None:
        hidden, num, rank = spec.hidden_size, alt_up.num_streams, alt_up.laurel_rank
        self.spec = alt_up
        self.router = Linear(num, hidden, dtype, bias=False)
        self.router_norm = RmsNorm(hidden, spec.norm_eps, dtype)
        self.prediction = Linear(num * num, num, dtype, bias=False)
        self.correction = Linear(num, num, dtype, bias=False)
        self.output_scale = (
            nnx.Param(jnp.zeros((hidden,), dtype)) if alt_up.has_output_scale else None
        )
        self.laurel_in = Linear(rank, hidden, dtype, bias=False)
        self.laurel_out = Linear(hidden, rank, dtype, bias=False)
        self.laurel_norm = RmsNorm(hidden, spec.norm_eps, dtype)

    def predict(self, x: jax.Array) -> jax.Array:
        """Residuals [T, streams, hidden] float32 of those behind the layer before."""
        num = self.spec.num_streams
        weights = self.prediction(self._modalities(x[:, self.spec.active]))
        return x + _mixed("tni,tih->tnh", weights.reshape(-1, num, num), x)

    def with_laurel(self, x: jax.Array, normed: jax.Array) -> jax.Array:
        """The residual x [T, hidden] behind attention, which read `normed` [T, hidden]."""
        added = normed + self.laurel_norm(self.laurel_out(self.laurel_in(normed)))
        return (x + added) / math.sqrt(2.0)

    def correct(self, predicted: jax.Array, x: jax.Array) -> jax.Array:
        """All residuals of the predicted [T, streams, hidden] and the computed one [T, hidden]."""
        weights = self.correction(self._modalities(x)) + 1.0
        error = x - predicted[:, self.spec.active]
        return predicted + error[:, None] * weights[..., None]

    def gating(self, x: jax.Array) -> jax.Array:
        """What gates the token's vector [T, hidden], of all residuals [T, streams, hidden]."""
        active = x[:, self.spec.active]
        if self.output_scale is None:
            return active
        scale: jax.Array = self.output_scale[...].astype(jnp.float32)
        return active * scale

    def _modalities(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.router(self.router_norm(x) / x.shape[-1]))


def _mixed(equation: str, weights: jax.Array, x: jax.Array) -> jax.Array:
    mixed: jax.Array = jnp.einsum(equation, weights, x, precision=lax.Precision.HIGHEST)
    return mixed


def _as_large_as(x: jax.Array, y: jax.Array) -> jax.Array:
    """Vectors y [T, hidden], each made as long as that of x."""

    def size(values: jax.Array, least: float) -> jax.Array:
        mean_square = jnp.mean(jnp.square(values), axis=-1, keepdims=True)
        return jnp.sqrt(jnp.maximum(mean_square, least))

    return y * size(x, 0.0) / size(y, _LEAST_MEAN_SQUARE)

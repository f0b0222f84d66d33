"""Vectors of each token for each layer, beside the embedding (Gemma 3n and 4).

One table gives them by the token, one product by its embedding; a layer adds its own behind the
MLP, gated by the residual.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from engine_worker.compute.models.layers import (
    ACTIVATIONS,
    Block,
    Embedding,
    Linear,
    RmsNorm,
    norm_of,
)
from engine_worker.compute.models.spec import DecoderSpec, TokenInputSpec

_SHARE = 2.0**-0.5
"""Of the sum of the two parts, so that it is as large as each."""


class TokenInputs(Block):
    """The vectors of some tokens for all layers."""

    def __init__(self, spec: DecoderSpec, inputs: TokenInputSpec, dtype: DTypeLike) -> None:
        size = spec.num_layers * inputs.width
        self.spec = inputs
        self.scale = spec.hidden_size**-0.5
        self.embedding = Embedding(inputs.vocab_size, size, dtype, inputs.width**0.5)
        self.projection = Linear(size, spec.hidden_size, dtype, bias=False)
        self.norm: Any = norm_of(spec, inputs.width, dtype)

    def __call__(self, token_ids: jax.Array, x: jax.Array) -> jax.Array:
        """The vectors.

        Args:
            token_ids: [T] int32.
            x: [T, hidden] float32, their embeddings.

        Returns:
            [T, layers, width] float32.
        """
        shape = (x.shape[0], -1, self.spec.width)
        known = jnp.where(token_ids < self.spec.vocab_size, token_ids, 0)
        of_embedding = self.norm((self.projection(x) * self.scale).reshape(shape))
        summed: jax.Array = (of_embedding + self.embedding(known).reshape(shape)) * _SHARE
        return summed


class TokenInputBlock(Block):
    """What a layer makes of its vectors: gate, activation, product, norm."""

    def __init__(self, spec: DecoderSpec, inputs: TokenInputSpec, dtype: DTypeLike) -> None:
        self.spec = inputs
        self.gate = Linear(inputs.width, spec.hidden_size, dtype, bias=False)
        self.projection = Linear(spec.hidden_size, inputs.width, dtype, bias=False)
        self.norm = RmsNorm(spec.hidden_size, spec.norm_eps, dtype)

    def __call__(self, x: jax.Array, inputs: jax.Array) -> jax.Array:
        """[T, hidden] float32 of the residual x [T, hidden] and the layer's vectors [T, width]."""
        gate = ACTIVATIONS[self.spec.activation](self.gate(x))
        return self.norm(self.projection(gate * inputs))

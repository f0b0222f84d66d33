"""The two kinds of models that make embeddings, behind one port: encoders and decoders."""

from typing import Protocol

import jax
import jax.numpy as jnp

from engine_worker.compute.models.decoder import DecoderWeights, Leaves
from engine_worker.compute.models.reference import dense_attention
from engine_worker.embedding.encoder import EncoderGraph


class EmbeddingModel(Protocol):
    """What turns rows of tokens into rows of vectors."""

    @property
    def num_dimensions(self) -> int:
        """D, numbers of a vector."""

    @property
    def leaves(self) -> Leaves:
        """The weights, handed to `hidden`."""

    def hidden(self, leaves: Leaves, token_ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """[B, T] int32 ids of rows of [B] int32 lengths to [B, T, D] float32; padding is noise."""


class EncoderModel:
    """An encoder with its weights: every token sees all of its row."""

    def __init__(self, graph: EncoderGraph, leaves: Leaves) -> None:
        self._graph = graph
        self._leaves = leaves

    @property
    def num_dimensions(self) -> int:
        return self._graph.spec.hidden_size

    @property
    def leaves(self) -> Leaves:
        return self._leaves

    def hidden(self, leaves: Leaves, token_ids: jax.Array, lengths: jax.Array) -> jax.Array:
        visible = jnp.arange(token_ids.shape[1], dtype=jnp.int32) < lengths[:, None]
        return self._graph.hidden(leaves, token_ids, visible)


class DecoderModel:
    """A decoder with its weights, which it may share with generation: tokens see what is before."""

    def __init__(self, weights: DecoderWeights) -> None:
        self._weights = weights

    @property
    def num_dimensions(self) -> int:
        return self._weights.graph.spec.hidden_size

    @property
    def leaves(self) -> Leaves:
        return self._weights.leaves

    def hidden(self, leaves: Leaves, token_ids: jax.Array, lengths: jax.Array) -> jax.Array:
        # Padding stands behind a row's tokens, where no token of it looks.
        graph = self._weights.graph
        num_rows, num_tokens = token_ids.shape
        positions = jnp.arange(num_tokens, dtype=jnp.int32)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            spec = graph.spec.layers[layer].attention
            rows = (x.reshape(num_rows, num_tokens, *x.shape[1:]) for x in (q, k, v))
            out = jax.vmap(lambda q, k, v: dense_attention(q, k, v, positions, spec))(*rows)
            return out.reshape(q.shape)

        flat = graph.forward(leaves, token_ids.reshape(-1), jnp.tile(positions, num_rows), attend)
        return flat.reshape(num_rows, num_tokens, -1)

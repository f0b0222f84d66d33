"""Token ids to vectors of whole texts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine_worker.embedding.dense import DenseWeights
from engine_worker.embedding.models import EmbeddingModel
from engine_worker.embedding.pooling import PoolingSpec, pool
from engine_worker.embedding.row_programs import RowPrograms, Vectors
from engine_worker.errors import ModelConfigError


class Embedder(RowPrograms):
    """Token ids in, vectors out; used by one thread.

    Args:
        model: The model with its weights.
        pooling: What follows its last layer.
        max_tokens: The longest row.
        dense: The weights of the layers that pooling names.

    Raises:
        ModelConfigError: A layer doesn't fit what stands before it.
    """

    _what = "embeddings"

    def __init__(
        self,
        model: EmbeddingModel,
        pooling: PoolingSpec,
        max_tokens: int,
        dense: Sequence[DenseWeights] = (),
    ) -> None:
        width = model.num_dimensions
        for layer in pooling.dense:
            if layer.num_in != width:
                raise ModelConfigError(
                    f"{layer.folder}: in_features is {layer.num_in}, but vectors have"
                    f" {width} numbers there"
                )
            width = layer.num_out
        super().__init__(model, max_tokens, width)
        self.pooling = pooling
        self.layers = tuple(dense)
        self._dense = tuple((jnp.asarray(one.weight), jnp.asarray(one.bias)) for one in dense)

    @property
    def num_dimensions(self) -> int:
        """Numbers of a vector."""
        return self.width

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One vector for each row of token ids.

        Args:
            rows: Each of 1 to `max_tokens` ids.

        Returns:
            [N, D] float32, in the order of the rows.
        """
        return self.compute(rows)

    def _extra(self) -> Any:
        return self._dense

    def _finish(self, leaves: Any, extra: Any, hidden: jax.Array, lengths: jax.Array) -> jax.Array:
        return pool(hidden, lengths, self.pooling, extra)


def shorten(vectors: Vectors, num_dimensions: int) -> Vectors:
    """The leading numbers of each vector, scaled to length 1 (arXiv 2205.13147).

    Args:
        vectors: [N, D].
        num_dimensions: At most D.

    Returns:
        [N, num_dimensions] float32.
    """
    short = vectors[:, :num_dimensions]
    norms: Vectors = np.linalg.norm(short, axis=1, keepdims=True)
    return (short / np.maximum(norms, 1e-12)).astype(np.float32)

"""Token ids of texts, or of pairs of texts, to the logits of a sequence classifier."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.models.decoder import Leaves
from engine_worker.embedding.encoder import EncoderGraph
from engine_worker.embedding.labels import Labels
from engine_worker.embedding.models import EmbeddingModel
from engine_worker.embedding.pooling import PoolingSpec, pool
from engine_worker.embedding.row_programs import RowPrograms


class Head(Protocol):
    """From the vectors of a row's tokens to its logits."""

    @property
    def weights(self) -> Any:
        """Arrays beside the model's, handed to `logits`."""

    def logits(
        self, leaves: Leaves, weights: Any, hidden: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        """[B, T, D] float32 of rows of [B] int32 lengths to [B, labels] float32."""


class EncoderHead:
    """The classifier of an encoder, whose weights are among the model's."""

    weights = ()

    def __init__(self, graph: EncoderGraph) -> None:
        assert graph.spec.head is not None, "only graphs with a head have one"
        self._graph = graph
        self._pooling = PoolingSpec(graph.spec.head.pooling, normalize=False)

    def logits(
        self, leaves: Leaves, weights: Any, hidden: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        return self._graph.logits(leaves, pool(hidden, lengths, self._pooling))


class DecoderHead:
    """The matrix that decoders apply to the last token's vector.

    Args:
        weight: [labels, D] of any float type.
    """

    def __init__(self, weight: npt.NDArray[np.float32]) -> None:
        self.weights = jnp.asarray(weight)
        self._pooling = PoolingSpec("last", normalize=False)

    def logits(
        self, leaves: Leaves, weights: Any, hidden: jax.Array, lengths: jax.Array
    ) -> jax.Array:
        last = pool(hidden, lengths, self._pooling)
        # Accelerators otherwise round float32 operands (TF32).
        product: jax.Array = jnp.einsum(
            "bd,ld->bl", last, weights.astype(jnp.float32), precision=lax.Precision.HIGHEST
        )
        return product


class Classifier(RowPrograms):
    """Token ids in, logits out; used by one thread.

    Args:
        model: The model with its weights.
        head: What follows its last layer.
        labels: What the logits mean.
        max_tokens: The longest row.
    """

    _what = "classifications"

    def __init__(self, model: EmbeddingModel, head: Head, labels: Labels, max_tokens: int) -> None:
        super().__init__(model, max_tokens, len(labels.names))
        self.labels = labels
        self._head = head

    def _extra(self) -> Any:
        return self._head.weights

    def _finish(self, leaves: Any, extra: Any, hidden: jax.Array, lengths: jax.Array) -> jax.Array:
        return self._head.logits(leaves, extra, hidden, lengths)

"""Runs embedding models in batches of rows of similar length; one program a batch shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.embedding.dense import DenseWeights
from engine_worker.embedding.models import EmbeddingModel
from engine_worker.embedding.pooling import PoolingSpec, pool
from engine_worker.errors import ModelConfigError

_MIN_TOKENS: Final = 16
_MAX_BATCH_TOKENS: Final = 2048
"""Of one program; more gains nothing on a CPU."""
_MAX_ROWS: Final = 32

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of one program: rows and tokens a row."""

    num_rows: int
    num_tokens: int


def batch_shapes(max_tokens: int) -> tuple[BatchShape, ...]:
    """All program shapes: lengths double up to `max_tokens`, each for one row and for many."""
    lengths = []
    length = _MIN_TOKENS
    while length < max_tokens:
        lengths.append(length)
        length *= 2
    lengths.append(max_tokens)
    shapes = []
    for length in lengths:
        many = max(2, min(_MAX_ROWS, _MAX_BATCH_TOKENS // length))
        # One row is a program of its own: alone it shouldn't wait for the padding of many.
        shapes += [BatchShape(1, length), BatchShape(many, length)]
    return tuple(shapes)


class Embedder:
    """Token ids in, vectors out; used by one thread.

    Args:
        model: The model with its weights.
        pooling: What follows its last layer.
        max_tokens: The longest row.
        dense: The weights of the layers that pooling names.

    Raises:
        ModelConfigError: A layer doesn't fit what stands before it.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        pooling: PoolingSpec,
        max_tokens: int,
        dense: Sequence[DenseWeights] = (),
    ) -> None:
        self.max_tokens = max_tokens
        self.num_dimensions = model.num_dimensions
        for layer in pooling.dense:
            if layer.num_in != self.num_dimensions:
                raise ModelConfigError(
                    f"{layer.folder}: in_features is {layer.num_in}, but vectors have"
                    f" {self.num_dimensions} numbers there"
                )
            self.num_dimensions = layer.num_out
        self._dense = tuple((jnp.asarray(one.weight), jnp.asarray(one.bias)) for one in dense)
        self.pooling = pooling
        self.num_compiles = 0
        self._model = model
        self._shapes = batch_shapes(max_tokens)
        self._programs: dict[BatchShape, Any] = {}

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compile (or load from the persistent cache) every program."""
        for number, shape in enumerate(self._shapes):
            text = f"{shape.num_rows} texts of {shape.num_tokens} tokens"
            progress(number / len(self._shapes), f"compiling embeddings of {text}")
            self._program(shape)
        progress(1.0, f"compiled {len(self._shapes)} embedding programs")

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One vector for each row of token ids.

        Args:
            rows: Each of 1 to `max_tokens` ids.

        Returns:
            [N, D] float32, in the order of the rows.
        """
        vectors = np.empty((len(rows), self.num_dimensions), np.float32)
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_length.setdefault(self._length_for(len(row)), []).append(index)
        for length, indexes in by_length.items():
            alone, many = (shape for shape in self._shapes if shape.num_tokens == length)
            for first in range(0, len(indexes), many.num_rows):
                batch = indexes[first : first + many.num_rows]
                shape = alone if len(batch) == 1 else many
                vectors[batch] = self._run(shape, [rows[index] for index in batch])
        return vectors

    def _length_for(self, num_tokens: int) -> int:
        return next(s.num_tokens for s in self._shapes if s.num_tokens >= num_tokens)

    def _run(self, shape: BatchShape, rows: Sequence[Sequence[int]]) -> Vectors:
        token_ids = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
        lengths = np.zeros(shape.num_rows, np.int32)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
            lengths[index] = len(row)
        program = self._program(shape)
        vectors = program(self._model.leaves, self._dense, token_ids, lengths)
        return np.asarray(vectors)[: len(rows)]

    def _program(self, shape: BatchShape) -> Any:
        """The program of a shape, compiled ahead of time, so that a call can never retrace."""
        program = self._programs.get(shape)
        if program is None:
            model, pooling = self._model, self.pooling

            def embed(
                leaves: Any, dense: Any, token_ids: jax.Array, lengths: jax.Array
            ) -> jax.Array:
                return pool(model.hidden(leaves, token_ids, lengths), lengths, pooling, dense)

            token_ids = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
            lengths = np.zeros(shape.num_rows, np.int32)
            program = jax.jit(embed).lower(model.leaves, self._dense, token_ids, lengths).compile()
            self._programs[shape] = program
            self.num_compiles += 1
        return program


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

"""Runs a model over rows of tokens, in batches of rows of similar length; a program a shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.embedding.models import EmbeddingModel

_MIN_TOKENS: Final = 16
_MAX_BATCH_TOKENS: Final = 2048
"""Of one program."""
_MAX_CPU_BATCH_TOKENS: Final = 512
"""The same on a CPU, whose caches hold no more: a token then costs 7 to 26 % less
(docs/measurements/attack.md), and whoever comes meanwhile waits a quarter of the time."""
_LONG_ROW_TOKENS: Final = 128
_MAX_CPU_LONG_TOKENS: Final = 256
"""The same of rows from that length on: there a token costs as much in a row alone."""
_MAX_ROWS: Final = 32
_FEW_ROWS: Final = 4
_MAX_CLOSE_TOKENS: Final = 512
"""Up to which lengths lie close together; beyond, each is a program that takes long to compile."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of one program: rows and tokens a row."""

    num_rows: int
    num_tokens: int


def batch_shapes(
    max_tokens: int, max_batch_tokens: int, max_long_tokens: int | None = None
) -> tuple[BatchShape, ...]:
    """All program shapes, by length and then by rows.

    Lengths grow by a third or a half up to 512 tokens, so that little of a row is padding, and
    double from there on. Each has programs of one row, of a few and of many: a few texts shouldn't
    pay for the padding of many.

    Args:
        max_tokens: Of a row.
        max_batch_tokens: Of a program, unless two rows have more.
        max_long_tokens: Of a program of long rows, unless one row has more; None is no other bound.
    """
    lengths, length = [], _MIN_TOKENS
    while length < max_tokens:
        lengths.append(length)
        if 2 * _MIN_TOKENS <= length < _MAX_CLOSE_TOKENS and 3 * length // 2 < max_tokens:
            lengths.append(3 * length // 2)
        length *= 2
    lengths.append(max_tokens)
    shapes = []
    for length in lengths:
        if max_long_tokens is None or length < _LONG_ROW_TOKENS:
            many = max(2, min(_MAX_ROWS, max_batch_tokens // length))
        else:
            many = max(1, max_long_tokens // length)
        shapes += [BatchShape(rows, length) for rows in (1, _FEW_ROWS) if rows < many]
        shapes.append(BatchShape(many, length))
    return tuple(shapes)


def rows_of_batches(num_rows: int, sizes: Sequence[int]) -> list[int]:
    """How many of some rows each program takes, so that few places stay empty.

    Args:
        num_rows: Of one length.
        sizes: Rows of the programs that there are, ascending from 1.

    Returns:
        Numbers that sum to `num_rows`, none above the largest size.
    """
    found = []
    while num_rows:
        fitting = next((size for size in sizes if size >= num_rows), sizes[-1])
        # Half empty it costs as much as the smaller ones that are full.
        if 2 * num_rows < fitting:
            fitting = max(size for size in sizes if size <= num_rows)
        taken = min(num_rows, fitting)
        found.append(taken)
        num_rows -= taken
    return found


class RowPrograms(ABC):
    """Rows of tokens in, one vector a row out; used by one thread.

    Args:
        model: The model with its weights.
        max_tokens: The longest row.
        width: Numbers of a vector.

    Attributes:
        num_compiles: Programs so far.
    """

    _what = "texts"

    def __init__(self, model: EmbeddingModel, max_tokens: int, width: int) -> None:
        self.max_tokens = max_tokens
        self.width = width
        self.num_compiles = 0
        self._model = model
        is_cpu = jax.default_backend() == "cpu"
        self._shapes = (
            batch_shapes(max_tokens, _MAX_CPU_BATCH_TOKENS, _MAX_CPU_LONG_TOKENS)
            if is_cpu
            else batch_shapes(max_tokens, _MAX_BATCH_TOKENS)
        )
        self._programs: dict[BatchShape, Any] = {}

    @abstractmethod
    def _finish(self, leaves: Any, extra: Any, hidden: jax.Array, lengths: jax.Array) -> jax.Array:
        """From the vectors of all tokens to one a row; called while a program is traced.

        Args:
            leaves: The model's weights.
            extra: What `_extra` returns.
            hidden: [B, T, D] float32.
            lengths: [B] int32; 0 for padding rows.

        Returns:
            [B, width] float32.
        """

    def _extra(self) -> Any:
        """Arrays beside the model's, handed to every program."""
        return ()

    def warm_up(self, progress: ProgressCallback) -> None:
        """Compile (or load from the persistent cache) every program."""
        for number, shape in enumerate(self._shapes):
            text = f"{shape.num_rows} {self._what} of {shape.num_tokens} tokens"
            progress(number / len(self._shapes), f"compiling {text}")
            self._program(shape)
        progress(1.0, f"compiled {len(self._shapes)} programs")

    def compute(
        self,
        rows: Sequence[Sequence[int]],
        type_ids: Sequence[Sequence[int]] | None = None,
        *,
        is_wanted: Callable[[Sequence[int]], bool] | None = None,
        on_done: Callable[[Sequence[int], Vectors], None] | None = None,
    ) -> Vectors:
        """One vector for each row.

        Args:
            rows: Token ids, 1 to `max_tokens` each.
            type_ids: For each row as many: 1 in the second text of a pair; None is all 0.
            is_wanted: Asked before each program runs whether it should, for the rows of these
                indices; those of a program that didn't run are zeros.
            on_done: Told the indices and vectors of each program that ran.

        Returns:
            [N, width] float32, in the order of the rows.
        """
        vectors = np.zeros((len(rows), self.width), np.float32)
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_length.setdefault(self._length_for(len(row)), []).append(index)
        for length, indexes in by_length.items():
            shapes = {one.num_rows: one for one in self._shapes if one.num_tokens == length}
            first = 0
            for num_taken in rows_of_batches(len(indexes), sorted(shapes)):
                batch = indexes[first : first + num_taken]
                first += num_taken
                if is_wanted is not None and not is_wanted(batch):
                    continue
                size = next(size for size in sorted(shapes) if size >= num_taken)
                vectors[batch] = self._run(
                    shapes[size],
                    [rows[index] for index in batch],
                    None if type_ids is None else [type_ids[index] for index in batch],
                )
                if on_done is not None:
                    on_done(batch, vectors[batch])
        return vectors

    def _length_for(self, num_tokens: int) -> int:
        return next(s.num_tokens for s in self._shapes if s.num_tokens >= num_tokens)

    def _run(
        self,
        shape: BatchShape,
        rows: Sequence[Sequence[int]],
        type_ids: Sequence[Sequence[int]] | None,
    ) -> Vectors:
        token_ids = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
        types = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
        lengths = np.zeros(shape.num_rows, np.int32)
        for index, row in enumerate(rows):
            token_ids[index, : len(row)] = row
            lengths[index] = len(row)
            if type_ids is not None:
                types[index, : len(row)] = type_ids[index]
        program = self._program(shape)
        vectors = program(self._model.leaves, self._extra(), token_ids, types, lengths)
        return np.asarray(vectors)[: len(rows)]

    def _program(self, shape: BatchShape) -> Any:
        """The program of a shape, compiled ahead of time, so that a call can never retrace."""
        program = self._programs.get(shape)
        if program is None:

            def compute(
                leaves: Any, extra: Any, token_ids: jax.Array, types: jax.Array, lengths: jax.Array
            ) -> jax.Array:
                hidden = self._model.hidden(leaves, token_ids, types, lengths)
                return self._finish(leaves, extra, hidden, lengths)

            token_ids = np.zeros((shape.num_rows, shape.num_tokens), np.int32)
            lengths = np.zeros(shape.num_rows, np.int32)
            arguments = (self._model.leaves, self._extra(), token_ids, token_ids, lengths)
            program = jax.jit(compute).lower(*arguments).compile()
            self._programs[shape] = program
            self.num_compiles += 1
        return program

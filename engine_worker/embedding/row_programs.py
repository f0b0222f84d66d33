"""Runs a model over rows of tokens, in batches of rows of similar length; a program a shape."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
import numpy.typing as npt

from engine_worker.core.choice.batch import ProgressCallback
from engine_worker.embedding.long_rows import LongRows
from engine_worker.embedding.models import DecoderModel, EmbeddingModel

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
_WHOLE_TOKENS: Final = 2048
"""Of a decoder's row that one program computes; a longer one goes in pieces."""
_CPU_WHOLE_TOKENS: Final = 512
"""The same on a CPU, where that takes a second or more of a small model."""

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


def whole_and_piece_tokens() -> tuple[int, int]:
    """The longest row of a decoder that one program computes, and the pieces of longer ones."""
    if jax.default_backend() == "cpu":
        return _CPU_WHOLE_TOKENS, _MAX_CPU_LONG_TOKENS
    return _WHOLE_TOKENS, _MAX_BATCH_TOKENS


class RowPrograms(ABC):
    """Rows of tokens in, one vector a row out; used by one thread.

    Args:
        model: The model with its weights.
        max_tokens: The longest row.
        width: Numbers of a vector.

    Attributes:
        max_whole_tokens: Longer rows are computed in pieces.
    """

    _what = "texts"

    def __init__(self, model: EmbeddingModel, max_tokens: int, width: int) -> None:
        self.max_tokens = max_tokens
        self.width = width
        self.max_whole_tokens = max_tokens
        self._model = model
        self._long: LongRows | None = None
        whole, piece = whole_and_piece_tokens()
        if isinstance(model, DecoderModel) and max_tokens > whole:
            self.max_whole_tokens = whole
            self._long = LongRows(
                model,
                max_tokens=max_tokens,
                piece_tokens=piece,
                shortest=whole,
                finish=self._finish,
                extra=self._extra,
            )
        is_cpu = jax.default_backend() == "cpu"
        self._shapes = (
            batch_shapes(self.max_whole_tokens, _MAX_CPU_BATCH_TOKENS, _MAX_CPU_LONG_TOKENS)
            if is_cpu
            else batch_shapes(self.max_whole_tokens, _MAX_BATCH_TOKENS)
        )
        self._programs: dict[BatchShape, Any] = {}

    @property
    def num_compiles(self) -> int:
        """Programs so far."""
        return len(self._programs) + (0 if self._long is None else self._long.num_compiles)

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
        if self._long is not None:
            for length in self._long.lengths:
                progress(1.0, f"compiling {self._what} of up to {length} tokens, in pieces")
                self._long.programs(length)
        progress(1.0, f"compiled {self.num_compiles} programs")

    def compute(
        self,
        rows: Sequence[Sequence[int]],
        type_ids: Sequence[Sequence[int]] | None = None,
        *,
        is_wanted: Callable[[Sequence[int]], bool] | None = None,
        on_done: Callable[[Sequence[int], Vectors], None] | None = None,
        goes_on: Callable[[int], bool] | None = None,
    ) -> Vectors:
        """One vector for each row; those of rows that one program computes come first.

        Args:
            rows: Token ids, 1 to `max_tokens` each.
            type_ids: For each row as many: 1 in the second text of a pair; None is all 0.
            is_wanted: Asked before each program runs whether it should, for the rows of these
                indices; those of a program that didn't run are zeros.
            on_done: Told the indices and vectors of each program that ran.
            goes_on: Asked between two pieces of a long row whether the row of this index is still
                wanted; that of one that was stopped is zeros, and `on_done` isn't told.

        Returns:
            [N, width] float32, in the order of the rows.
        """
        vectors = np.zeros((len(rows), self.width), np.float32)
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if len(row) <= self.max_whole_tokens:
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
        for index, row in enumerate(rows):
            if len(row) <= self.max_whole_tokens:
                continue
            if is_wanted is not None and not is_wanted([index]):
                continue
            vector = self._run_long(row, index, goes_on)
            if vector is not None:
                vectors[index] = vector
                if on_done is not None:
                    on_done([index], vectors[[index]])
        return vectors

    def _run_long(
        self, row: Sequence[int], index: int, goes_on: Callable[[int], bool] | None
    ) -> Vectors | None:
        assert self._long is not None, "no row is longer than the longest"
        return self._long.compute(row, lambda: goes_on is None or goes_on(index))

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
        return program

"""Rows that are too long for one program: computed in pieces, through a cache of their own.

One program over a long row would keep everybody else waiting until its end, and hold what it
computes of all tokens at once. In pieces others have their turn between two of them, and memory
grows with the row's keys and values only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.backends.kv_layout import KvCache, KvLayout
from engine_worker.embedding.models import DecoderModel

_GROWTH: Final = 4
"""Of one length to the next: a length costs two programs, which every start compiles."""
_LARGE_GROWTH: Final = 2
_LARGE_TOKENS: Final = 2048
"""From here on lengths are closer: the vectors of all a length's tokens are held, however short the
row is."""
_NUMBER_BYTES: Final = 4
_HELD_TWICE: Final = 2
"""Vectors of all tokens, while they become one."""

Finish = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
"""See `RowPrograms._finish`."""


@dataclass(frozen=True, slots=True)
class _Programs:
    """Those of one length.

    Attributes:
        num_tokens: The longest row, a multiple of the pieces.
        piece: From weights, cache, vectors, a piece's tokens, where it begins and how long the row
            is to cache and vectors.
        finish: From weights, what `extra` gives, vectors and length to the row's one vector.
    """

    num_tokens: int
    layout: KvLayout
    piece: Any
    finish: Any


def long_row_bytes(model: DecoderModel, num_tokens: int, piece_tokens: int) -> int:
    """What a row of so many tokens takes beside the weights while it is computed in pieces."""
    whole = -(-num_tokens // piece_tokens) * piece_tokens
    vectors = whole * model.num_dimensions * _NUMBER_BYTES
    return model.layout(1, whole, piece_tokens).size_bytes + _HELD_TWICE * vectors


class LongRows:
    """Programs for the long rows of one decoder; used by one thread.

    Args:
        model: The decoder.
        max_tokens: The longest row.
        piece_tokens: Of one program, a multiple of the tokens of a block.
        shortest: Rows up to so many tokens are computed elsewhere.
        finish: From the vectors of all tokens to one; called while a program is traced.
        extra: Gives the arrays beside the model's that `finish` takes.
    """

    def __init__(
        self,
        model: DecoderModel,
        *,
        max_tokens: int,
        piece_tokens: int,
        shortest: int,
        finish: Finish,
        extra: Callable[[], Any],
    ) -> None:
        self._model = model
        self._piece_tokens = piece_tokens
        self._finish = finish
        self._extra = extra
        self._programs: dict[int, _Programs] = {}
        self.lengths = tuple(self._whole(length) for length in _lengths(shortest, max_tokens))

    def compute(
        self, token_ids: Sequence[int], goes_on: Callable[[], bool]
    ) -> npt.NDArray[np.float32] | None:
        """The vector of a row.

        Args:
            token_ids: At most as many as the longest row has.
            goes_on: Asked between two pieces; False stops the row.

        Returns:
            [width] float32; None for a row that was stopped.
        """
        programs = self.programs(next(one for one in self.lengths if one >= len(token_ids)))
        leaves, length = self._model.leaves, np.int32(len(token_ids))
        cache = programs.layout.allocate()
        vectors = jnp.zeros((1, programs.num_tokens, self._model.num_dimensions), jnp.float32)
        for first in range(0, len(token_ids), self._piece_tokens):
            # What was begun is finished first: programs run beside whoever started them.
            if first and not goes_on():
                return None
            piece = np.zeros((1, self._piece_tokens), np.int32)
            part = token_ids[first : first + self._piece_tokens]
            piece[0, : len(part)] = part
            cache, vectors = programs.piece(leaves, cache, vectors, piece, np.int32(first), length)
            vectors.block_until_ready()
        found = programs.finish(leaves, self._extra(), vectors, np.array([length], np.int32))
        vector: npt.NDArray[np.float32] = np.asarray(found)[0]
        return vector

    def programs(self, num_tokens: int) -> _Programs:
        """Those of one of `lengths`, compiled ahead of time, so that a call can never retrace."""
        found = self._programs.get(num_tokens)
        if found is None:
            found = self._programs[num_tokens] = self._compiled(num_tokens)
        return found

    @property
    def num_compiles(self) -> int:
        """Programs so far."""
        return 2 * len(self._programs)

    def _whole(self, num_tokens: int) -> int:
        return -(-num_tokens // self._piece_tokens) * self._piece_tokens

    def _compiled(self, num_tokens: int) -> _Programs:
        model = self._model
        layout = model.layout(1, num_tokens, self._piece_tokens)

        def piece(
            leaves: Any,
            cache: KvCache,
            vectors: jax.Array,
            token_ids: jax.Array,
            first: jax.Array,
            length: jax.Array,
        ) -> tuple[KvCache, jax.Array]:
            hidden, cache = model.step(leaves, cache, layout, token_ids, first, length[None])
            return cache, lax.dynamic_update_slice_in_dim(vectors, hidden, first, axis=1)

        leaves, number = model.leaves, np.int32(0)
        shape = (1, num_tokens, model.num_dimensions)
        vectors = jax.eval_shape(lambda: jnp.zeros(shape, jnp.float32))
        tokens = np.zeros((1, self._piece_tokens), np.int32)
        lengths = np.zeros(1, np.int32)
        arguments = (leaves, layout.abstract(), vectors, tokens, number, number)
        return _Programs(
            num_tokens,
            layout,
            jax.jit(piece, donate_argnums=(1, 2)).lower(*arguments).compile(),
            jax.jit(self._finish).lower(leaves, self._extra(), vectors, lengths).compile(),
        )


def _lengths(shortest: int, longest: int) -> Iterator[int]:
    """Up to which rows share programs: each some times the one before, and the longest."""
    length = shortest * _GROWTH
    while 2 * length <= longest:
        yield length
        length *= _LARGE_GROWTH if length >= _LARGE_TOKENS else _GROWTH
    yield longest

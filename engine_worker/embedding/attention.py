"""Attention of every token to its whole row, or to a window on both sides of it."""

import math
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

MAX_QUERIES: Final = 512
"""Queries of a row whose scores are held at once; more go in turns, so that memory grows with the
row's length and not with its square."""
_MASKED_SCORE: Final = -1e30
"""Finite, so that a row of padding gives no NaN."""
_MAX_DISTANCE: Final = 128
"""Of MPNet's buckets: all that is farther shares the last one."""

# Accelerators otherwise round float32 operands (TF32).
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class DistanceVectors(NamedTuple):
    """What keys and queries of distances add to the scores of tokens (DeBERTa).

    Attributes:
        rows: [2 T - 1] int32, which row a distance has, by `j - i + T - 1` from query to key.
        keys: [R, H, D] float32, which queries of tokens are multiplied with; None adds nothing.
        queries: Likewise, which keys of tokens are multiplied with.
    """

    rows: npt.NDArray[np.int32]
    keys: jax.Array | None
    queries: jax.Array | None

    @property
    def num_parts(self) -> int:
        """Products that a score is the sum of, that of the tokens included."""
        return 1 + (self.keys is not None) + (self.queries is not None)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: jax.Array,
    *,
    window: int | None,
    relative: jax.Array | None,
    vectors: DistanceVectors | None = None,
) -> jax.Array:
    """Attention of a batch of rows.

    Args:
        q: [B, T, H, D] float32, as k and v.
        k: Keys.
        v: Values.
        visible: [B, T] bool, false for padding.
        window: Tokens i and j see each other when |i - j| <= window; None sees all.
        relative: [2 T - 1, H] float32, added to the scores by `j - i + T - 1`; None adds nothing.
        vectors: Of distances; None adds nothing.

    Returns:
        [B, T, H, D] float32.
    """
    num_tokens = q.shape[1]
    if num_tokens <= MAX_QUERIES:
        everywhere = np.arange(num_tokens)
        return _attended(q, k, v, visible, everywhere, everywhere, window, relative, vectors)
    num_turns = -(-num_tokens // MAX_QUERIES)
    padding = num_turns * MAX_QUERIES - num_tokens
    queries = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    # What a turn's queries may see: all, or their own places with a window before and behind.
    span = num_tokens if window is None else min(num_tokens, MAX_QUERIES + 2 * window)

    def turn(number: jax.Array) -> jax.Array:
        first = number * MAX_QUERIES
        seen = jnp.clip(first - (window or 0), 0, num_tokens - span)
        places = partial(lax.dynamic_slice_in_dim, start_index=seen, slice_size=span, axis=1)
        return _attended(
            lax.dynamic_slice_in_dim(queries, first, MAX_QUERIES, axis=1),
            places(k),
            places(v),
            places(visible),
            # Padding has any place; what it gets is cut off.
            jnp.minimum(first + jnp.arange(MAX_QUERIES), num_tokens - 1),
            seen + jnp.arange(span),
            window,
            relative,
            vectors,
        )

    turns = lax.map(turn, jnp.arange(num_turns))
    whole = jnp.moveaxis(turns, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])
    return whole[:, :num_tokens]


def _attended(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: jax.Array,
    query_places: jax.Array | npt.NDArray[np.int64],
    key_places: jax.Array | npt.NDArray[np.int64],
    window: int | None,
    relative: jax.Array | None,
    vectors: DistanceVectors | None,
) -> jax.Array:
    distances = jnp.asarray(key_places)[None, :] - jnp.asarray(query_places)[:, None]
    scores = _einsum("bthd,bshd->bhts", q, k)
    if vectors is not None:
        scores = (scores + _by_distance(q, k, distances, vectors)) * vectors.num_parts**-0.5
    scores *= q.shape[-1] ** -0.5
    if relative is not None:
        scores += relative[distances + relative.shape[0] // 2].transpose(2, 0, 1)
    is_seen = visible[:, None, None, :]
    if window is not None:
        is_seen = is_seen & (jnp.abs(distances) <= window)
    scores = jnp.where(is_seen, scores, _MASKED_SCORE)
    return _einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)


def _by_distance(
    q: jax.Array, k: jax.Array, distances: jax.Array, vectors: DistanceVectors
) -> jax.Array:
    """[B, H, T, S], what the vectors of `distances` [T, S] add to scores."""
    rows = jnp.asarray(vectors.rows)[distances + len(vectors.rows) // 2]
    scores = jnp.zeros((), jnp.float32)
    if vectors.keys is not None:
        by_row = _einsum("bthd,rhd->bhtr", q, vectors.keys)
        scores += jnp.take_along_axis(by_row, rows[None, None], axis=3)
    if vectors.queries is not None:
        by_row = _einsum("bshd,rhd->bhsr", k, vectors.queries)
        scores += jnp.take_along_axis(by_row, rows.T[None, None], axis=3).swapaxes(2, 3)
    return scores


def distance_rows(num_tokens: int, span: int, longest: int | None) -> npt.NDArray[np.int32]:
    """Rows of a table of distances (arXiv 2006.03654), as transformers' DeBERTa V2 has them.

    Args:
        num_tokens: T, of the longest row of tokens.
        span: Half the table's rows.
        longest: Distances beyond half the span grow logarithmically up to it; None has one row for
            each.

    Returns:
        [2 T - 1] of 0 to 2 span - 1, for the distances -(T - 1) to T - 1 from query to key.
    """
    # The table counts from key to query.
    distances = -np.arange(-(num_tokens - 1), num_tokens)
    if longest is not None:
        middle = span // 2
        # In float32 and in this order, so that borders fall where they do in transformers.
        far = np.maximum(np.abs(distances), middle).astype(np.float32) / np.float32(middle)
        scale = np.log(np.float32((longest - 1) / middle))
        steps = np.ceil(np.log(far) / scale * np.float32(middle - 1)) + middle
        is_near = np.abs(distances) <= middle
        distances = np.where(is_near, distances, np.sign(distances) * steps.astype(np.int64))
    return np.clip(distances + span, 0, 2 * span - 1).astype(np.int32)


def relative_buckets(num_tokens: int, num_buckets: int) -> npt.NDArray[np.int32]:
    """T5's buckets (arXiv 1910.10683) as MPNet has them, by distance.

    Args:
        num_tokens: T, of the longest row.
        num_buckets: Half of them for keys behind the query, half for keys before it.

    Returns:
        [2 T - 1] numbers of buckets, for the distances -(T - 1) to T - 1 from query to key.
    """
    distances = np.arange(-(num_tokens - 1), num_tokens)
    half = num_buckets // 2
    exact = half // 2
    size = np.abs(distances)
    # In float32 and in this order, so that borders fall where they do in transformers.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    scale = math.log(_MAX_DISTANCE / exact)
    far = exact + (ratio / np.float32(scale) * np.float32(half - exact)).astype(np.int32)
    bucket = np.where(size < exact, size, np.minimum(far, half - 1))
    return (bucket + np.where(distances > 0, half, 0)).astype(np.int32)


def distance_biases(num_tokens: int, num_heads: int) -> npt.NDArray[np.float32]:
    """ALiBi (arXiv 2108.12409), on both sides of a token.

    Args:
        num_tokens: T, of the longest row.
        num_heads: H.

    Returns:
        [2 T - 1, H], for the distances -(T - 1) to T - 1 from query to key.
    """
    distances = np.abs(np.arange(-(num_tokens - 1), num_tokens)).astype(np.float32)
    return -distances[:, None] * np.array(_slopes(num_heads), np.float32)


def _slopes(num_heads: int) -> list[float]:
    """How fast the scores of each head fall.

    A geometric row for a power of two; further heads lie between those of twice as many.
    """
    power = 1 << (num_heads.bit_length() - 1)
    row = [2.0 ** (-8.0 * number / power) for number in range(1, power + 1)]
    return row if power == num_heads else row + _slopes(2 * power)[::2][: num_heads - power]

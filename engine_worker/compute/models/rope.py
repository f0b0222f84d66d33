"""Rotary position embeddings: frequencies from a spec, cosine and sine, and the rotation.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3.1's frequency smoothing;
the formulas are those of transformers' `modeling_rope_utils`, in float32 like there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.models.spec import (
    AttentionSpec,
    DecoderSpec,
    QueryScale,
    RopeKind,
    RopeSpec,
)

RopeTable = tuple[jax.Array, jax.Array]
"""Cosine and sine, each [T, 1, rotated pairs] float32."""
_RopeKey = tuple[RopeSpec, int]


def inverse_frequencies(
    rope: RopeSpec, head_dim: int, served_length: int = 0
) -> npt.NDArray[np.float32]:
    """The angle per position of each rotated pair.

    `dynamic` changes nothing up to the length that the model was made for, which is the longest
    that is served.

    Args:
        rope: The rope.
        head_dim: Width of one head.
        served_length: The longest sequence that is served, which decides for `longrope`.

    Returns:
        [rotated pairs] float32, radians per position.
    """
    width = int(head_dim * rope.partial_factor)
    if rope.kind is RopeKind.PROPORTIONAL:
        return _proportional(rope, head_dim)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    position_freqs = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    inv_freq: npt.NDArray[np.float32] = np.float32(1.0) / position_freqs
    match rope.kind:
        case RopeKind.LINEAR:
            inv_freq /= np.float32(rope.factor)
        case RopeKind.LLAMA3:
            return _llama3(inv_freq, rope)
        case RopeKind.YARN:
            return _yarn(inv_freq, rope, width)
        case RopeKind.LONGROPE:
            is_long = _has_long_factors(rope, served_length)
            factors = np.asarray(rope.long_factors if is_long else rope.short_factors, np.float32)
            inv_freq /= factors
        case _:
            assert rope.kind in {RopeKind.DEFAULT, RopeKind.DYNAMIC}, rope.kind
    return inv_freq


def ropes_without_frequencies(spec: DecoderSpec) -> Iterator[RopeSpec]:
    """Ropes whose numbers are so small or large that nothing finite comes of them."""
    for rope, head_dim in dict.fromkeys(_ropes_of(spec)):
        try:
            with np.errstate(all="ignore"):
                # Of `longrope`, both sets of factors.
                found = [inverse_frequencies(rope, head_dim, length) for length in (0, 2**31)]
                is_finite = np.isfinite([*map(np.sum, found), np.float32(rope.attention_factor)])
        except ArithmeticError:
            yield rope
            continue
        if not is_finite.all():
            yield rope


def for_length(spec: DecoderSpec, max_model_len: int | None) -> DecoderSpec:
    """The decoder as it serves at most so many tokens; None is what it was made for."""
    if max_model_len is None or not rope_factors(spec):
        return spec
    return replace(spec, served_length=max_model_len)


def _ropes_of(spec: DecoderSpec) -> Iterator[_RopeKey]:
    """The rope of every layer that has one, and how wide its heads are."""
    for attention in (layer.attention for layer in spec.layers if layer.is_attention):
        if attention.rope is not None:
            yield attention.rope, attention.head_dim


def rope_factors(spec: DecoderSpec) -> tuple[str, ...]:
    """`long` or `short` for every distinct rope that has factors by the length that is served."""
    ropes = (rope for rope, _ in dict.fromkeys(_ropes_of(spec)))
    return tuple(
        "long" if _has_long_factors(rope, _served_length(spec)) else "short"
        for rope in ropes
        if rope.kind is RopeKind.LONGROPE
    )


def _has_long_factors(rope: RopeSpec, served_length: int) -> bool:
    return served_length > rope.original_max_position_embeddings


def _served_length(spec: DecoderSpec) -> int:
    return spec.served_length or spec.max_position_embeddings


def _proportional(rope: RopeSpec, head_dim: int) -> npt.NDArray[np.float32]:
    """The first pairs turn as if the whole head did, the others not at all (Gemma 4)."""
    num_turning = int(rope.partial_factor * head_dim // 2)
    exponents = np.arange(0, 2 * num_turning, 2, dtype=np.float32) / np.float32(head_dim)
    turning = np.float32(1.0) / np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    inv_freq: npt.NDArray[np.float32] = np.zeros(head_dim // 2, np.float32)
    inv_freq[:num_turning] = turning / np.float32(rope.factor)
    return inv_freq


def _llama3(inv_freq: npt.NDArray[np.float32], rope: RopeSpec) -> npt.NDArray[np.float32]:
    context = np.float32(rope.original_max_position_embeddings)
    wavelength = np.float32(2 * math.pi) / inv_freq
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    scaled = np.where(wavelength > context / low, inv_freq / np.float32(rope.factor), inv_freq)
    if low == high:
        return scaled.astype(np.float32)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / np.float32(rope.factor) + smooth * scaled
    medium = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(medium, blended, scaled).astype(np.float32)


def _yarn(inv_freq: npt.NDArray[np.float32], rope: RopeSpec, width: int) -> npt.NDArray[np.float32]:
    def dimension_of(num_rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # A range of no width would divide by zero; the formula's authors widen it like this.
    span = high - low if high != low else 0.001
    ramp = np.clip((np.arange(len(inv_freq), dtype=np.float32) - low) / span, 0, 1)
    keep = np.float32(1.0) - ramp.astype(np.float32)
    blended: npt.NDArray[np.float32] = (
        inv_freq / np.float32(rope.factor) * (1 - keep) + inv_freq * keep
    )
    return blended


def rope_table(
    rope: RopeSpec, head_dim: int, positions: jax.Array, served_length: int = 0
) -> RopeTable:
    """Cosine and sine for a batch of tokens; traced inside the step program.

    Args:
        rope: The rope.
        head_dim: Width of one head.
        positions: [T] int32.
        served_length: As in `inverse_frequencies`.

    Returns:
        Cosine and sine, each [T, 1, rotated pairs] float32, attention factor included.
    """
    frequencies = inverse_frequencies(rope, head_dim, served_length)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    factor = jnp.float32(rope.attention_factor)
    return (jnp.cos(angles) * factor)[:, None, :], (jnp.sin(angles) * factor)[:, None, :]


class Rotation(NamedTuple):
    """What positions do to the heads of a layer, for one batch of tokens.

    Attributes:
        table: Cosine and sine; None for a layer without them.
        is_interleaved: As in `RopeSpec`.
        query_scale: [T, 1, 1] float32; None is 1.
    """

    table: RopeTable | None
    is_interleaved: bool = False
    query_scale: jax.Array | None = None

    def queries(self, q: jax.Array) -> jax.Array:
        """Queries [T, H, D] float32, rotated and scaled."""
        q = self.keys(q)
        return q if self.query_scale is None else q * self.query_scale

    def keys(self, k: jax.Array) -> jax.Array:
        """Keys [T, KH, D] float32, rotated."""
        if self.table is None:
            return k
        return rotate(k, self.table, is_interleaved=self.is_interleaved)


class RopeTables:
    """The table of every distinct rope of a decoder for one batch of tokens.

    Attributes:
        tables: In the order in which layers first need them.
    """

    def __init__(
        self, keys: Sequence[_RopeKey], tables: Sequence[RopeTable], positions: jax.Array
    ) -> None:
        self._keys = tuple(keys)
        self.tables = tuple(tables)
        self._positions = positions

    def index_of(self, attention: AttentionSpec) -> int | None:
        """Which of `tables` a layer takes; None for a layer without a rope."""
        if attention.rope is None:
            return None
        return self._keys.index((attention.rope, attention.head_dim))

    def of(self, attention: AttentionSpec) -> Rotation | None:
        """What positions do to a layer's heads; None for a layer without positions."""
        index, scale = self.index_of(attention), attention.query_scale
        if index is None and scale is None:
            return None
        return Rotation(
            None if index is None else self.tables[index],
            attention.rope is not None and attention.rope.interleaved,
            None if scale is None else query_scales(scale, self._positions),
        )


def query_scales(scale: QueryScale, positions: jax.Array) -> jax.Array:
    """What multiplies the queries of tokens at `positions` [T]: [T, 1, 1] float32."""
    steps = jnp.floor((positions + scale.offset).astype(jnp.float32) / scale.length)
    return (1.0 + scale.beta * jnp.log1p(steps))[:, None, None]


def rope_tables(spec: DecoderSpec, positions: jax.Array) -> RopeTables:
    """Cosine and sine for a batch of tokens, once for all layers that share them.

    Args:
        spec: The decoder.
        positions: [T] int32.
    """
    keys = dict.fromkeys(_ropes_of(spec))
    length = _served_length(spec)
    tables = [_shared_table(*key, positions, length) for key in keys]
    return RopeTables(list(keys), tables, positions)


def _shared_table(
    rope: RopeSpec, head_dim: int, positions: jax.Array, served_length: int
) -> RopeTable:
    """Computes a table once for all layers.

    XLA:CPU would compute it again in each layer, for each head. The result of a branch is never
    taken apart like that, so it stands in one that is always taken.
    """
    num_pairs = len(inverse_frequencies(rope, head_dim, served_length))
    empty = (positions.shape[0], 1, num_pairs)
    table: RopeTable = lax.cond(
        positions[0] >= 0,
        lambda: rope_table(rope, head_dim, positions, served_length),
        lambda: (jnp.zeros(empty, jnp.float32), jnp.zeros(empty, jnp.float32)),
    )
    return table


def rotate(x: jax.Array, table: RopeTable, *, is_interleaved: bool = False) -> jax.Array:
    """Rotates the first pairs of each head: as many as the table has; the rest stays.

    Args:
        x: [T, H, D] float32.
        table: From `rope_table` for the same tokens, R pairs.
        is_interleaved: Pairs are (2i, 2i + 1) instead of (i, i + R).

    Returns:
        [T, H, D] float32.
    """
    cosine, sine = table
    width = 2 * cosine.shape[-1]
    turning, still = x[..., :width], x[..., width:]
    if is_interleaved:
        pairs = turning.reshape(*turning.shape[:-1], width // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = [first * cosine - second * sine, second * cosine + first * sine]
        rotated = jnp.stack(turned, axis=-1).reshape(turning.shape)
        return jnp.concatenate([rotated, still], axis=-1)
    first, second = jnp.split(turning, 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate([*turned, still] if still.shape[-1] else turned, axis=-1)

"""Rotary position embeddings: frequencies from a spec, cosine and sine, and the rotation.

Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Llama 3.1's frequency smoothing;
the formulas are those of transformers' `modeling_rope_utils`, in float32 like there.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from engine_worker.compute.models.spec import AttentionSpec, DecoderSpec, RopeKind, RopeSpec

RopeTable = tuple[jax.Array, jax.Array]
"""Cosine and sine, each [T, 1, head_dim // 2] float32."""
_RopeKey = tuple[RopeSpec, int]


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> npt.NDArray[np.float32]:
    """The angle per position of each rotated pair.

    Args:
        rope: A rope of a supported kind.
        head_dim: Width of one head.

    Returns:
        [head_dim // 2] float32, radians per position.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    position_freqs = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    inv_freq: npt.NDArray[np.float32] = np.float32(1.0) / position_freqs
    if rope.kind is RopeKind.LINEAR:
        inv_freq /= np.float32(rope.factor)
        return inv_freq
    if rope.kind is RopeKind.LLAMA3:
        return _llama3(inv_freq, rope)
    if rope.kind is RopeKind.YARN:
        return _yarn(inv_freq, rope, head_dim)
    assert rope.kind is RopeKind.DEFAULT, rope.kind
    return inv_freq


def _llama3(inv_freq: npt.NDArray[np.float32], rope: RopeSpec) -> npt.NDArray[np.float32]:
    context = np.float32(rope.original_max_position_embeddings)
    wavelength = np.float32(2 * math.pi) / inv_freq
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    scaled = np.where(wavelength > context / low, inv_freq / np.float32(rope.factor), inv_freq)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / np.float32(rope.factor) + smooth * scaled
    medium = (wavelength >= context / high) & (wavelength <= context / low)
    return np.where(medium, blended, scaled).astype(np.float32)


def _yarn(
    inv_freq: npt.NDArray[np.float32], rope: RopeSpec, head_dim: int
) -> npt.NDArray[np.float32]:
    def dimension_of(num_rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A range of no width would divide by zero; the formula's authors widen it like this.
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    keep = np.float32(1.0) - ramp.astype(np.float32)
    blended: npt.NDArray[np.float32] = (
        inv_freq / np.float32(rope.factor) * (1 - keep) + inv_freq * keep
    )
    return blended


def rope_table(rope: RopeSpec, head_dim: int, positions: jax.Array) -> RopeTable:
    """Cosine and sine for a batch of tokens; traced inside the step program.

    Args:
        rope: A rope of a supported kind.
        head_dim: Width of one head.
        positions: [T] int32.

    Returns:
        Cosine and sine, each [T, 1, head_dim // 2] float32, attention factor included.
    """
    angles = positions.astype(jnp.float32)[:, None] * inverse_frequencies(rope, head_dim)
    factor = jnp.float32(rope.attention_factor)
    return (jnp.cos(angles) * factor)[:, None, :], (jnp.sin(angles) * factor)[:, None, :]


class RopeTables:
    """The table of every distinct rope of a decoder for one batch of tokens.

    Attributes:
        tables: In the order in which layers first need them.
    """

    def __init__(self, keys: Sequence[_RopeKey], tables: Sequence[RopeTable]) -> None:
        self._keys = tuple(keys)
        self.tables = tuple(tables)

    def index_of(self, attention: AttentionSpec) -> int | None:
        """Which of `tables` a layer takes; None for a layer without positions."""
        if attention.rope is None:
            return None
        return self._keys.index((attention.rope, attention.head_dim))

    def of(self, attention: AttentionSpec) -> RopeTable | None:
        """The table of a layer."""
        index = self.index_of(attention)
        return None if index is None else self.tables[index]


def rope_tables(spec: DecoderSpec, positions: jax.Array) -> RopeTables:
    """Cosine and sine for a batch of tokens, once for all layers that share them.

    Args:
        spec: The decoder.
        positions: [T] int32.
    """
    ropes = (layer.attention for layer in spec.layers)
    keys = dict.fromkeys((x.rope, x.head_dim) for x in ropes if x.rope is not None)
    return RopeTables(list(keys), [_shared_table(*key, positions) for key in keys])


def _shared_table(rope: RopeSpec, head_dim: int, positions: jax.Array) -> RopeTable:
    """Computes a table once for all layers.

    XLA:CPU would compute it again in each layer, for each head. The result of a branch is never
    taken apart like that, so it stands in one that is always taken.
    """
    empty = (positions.shape[0], 1, head_dim // 2)
    table: RopeTable = lax.cond(
        positions[0] >= 0,
        lambda: rope_table(rope, head_dim, positions),
        lambda: (jnp.zeros(empty, jnp.float32), jnp.zeros(empty, jnp.float32)),
    )
    return table


def rotate(x: jax.Array, table: RopeTable) -> jax.Array:
    """Rotates the pairs (i, i + D/2) of each head.

    Args:
        x: [T, H, D] float32.
        table: From `rope_table` for the same tokens.

    Returns:
        [T, H, D] float32.
    """
    cosine, sine = table
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )

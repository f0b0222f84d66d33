"""Matrices in int8: eight bits a number with one scale a row, and their product in plain XLA.

W8A8: a row of weights (an output channel) has one scale, so has a row of activations (a token),
made when it is multiplied; both are symmetric, 127 for the largest magnitude. The product is exact
in int32 and scaled at its end. With a product of int8 and anything else XLA:CPU would convert the
whole matrix on every call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

_LARGEST = 127
_TINY = np.float32(1e-20)
"""Keeps the scale of a row of zeros from being zero."""
_NUMBERS_AT_A_TIME = 2**22
"""That are quantised together."""


class QuantizedMatrix(NamedTuple):
    """`values * scales[..., None]`; one matrix, or those of all experts.

    Attributes:
        values: [out, in] or [E, out, in] int8.
        scales: [out] or [E, out] float32.
    """

    values: jax.Array
    scales: jax.Array

    def rows(self, indices: jax.Array) -> jax.Array:
        """Some rows as numbers: [T, in] float32 for [T] indices, clamped into range."""
        values = self.values.at[indices].get(mode="clip").astype(jnp.float32)
        return values * self.scales.at[indices].get(mode="clip")[:, None]


def quantize(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A matrix as int8 and scales, on the host, or several.

    Args:
        values: [out, in] or [E, out, in] of a float type.

    Raises:
        ValueError: Holds NaN or infinity, which no scale can hold.
    """
    quantized = np.empty(values.shape, np.int8)
    scales = np.empty(values.shape[:-1], np.float32)
    rows, rows_quantized = (one.reshape(-1, values.shape[-1]) for one in (values, quantized))
    # Its own numbers in float32 take several times what a matrix does.
    step = max(1, _NUMBERS_AT_A_TIME // values.shape[-1])
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        rows_quantized[some], scales.reshape(-1)[some] = _quantize_rows(rows[some])
    return quantized, scales


def _quantize_rows(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    numbers = values.astype(np.float32)
    largest = np.abs(numbers).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise ValueError("holds NaN or infinity, which int8 can't")
    scales = np.maximum(largest, _TINY) / np.float32(_LARGEST)
    return np.rint(numbers / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def quantized_matmul(x: jax.Array, matrix: QuantizedMatrix) -> jax.Array:
    """`x W^T`.

    Args:
        x: [T, in] of any float type.
        matrix: W [out, in].

    Returns:
        [T, out] float32.
    """
    x = x.astype(jnp.float32)
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), _TINY)
    scale = largest / _LARGEST
    # What is not a number stays so in the scale: casting alone would turn it into some number.
    rounded = jnp.round(x / scale).astype(jnp.int8)
    product = lax.dot_general(
        rounded,
        matrix.values,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return product.astype(jnp.float32) * scale * matrix.scales

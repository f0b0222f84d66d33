"""Types of the KV cache: which one a decoder gets, and keys and values in int8.

int8 has one float32 scale for each token and key head, of the keys and of the values: it is made
when they are stored, of these numbers alone, so that nothing is ever rounded a second time, and the
same token has the same bits whatever is stored beside it. The largest number becomes 127.

A latent attention (MLA) keeps no keys and values but what those of all heads are made of, which is
refused; a recurrent layer beside others keeps its states as they are, in float32.
"""

from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engine_worker.compute.models.spec import DecoderSpec
from protocol.errors import ConfigurationError

AUTO: Final = "auto"
INT8: Final = np.dtype(np.int8)
SCALE_BYTES: Final = 4
"""Of a scale, which lies in the page beside its numbers."""
_LARGEST: Final = 127.0
_LEAST: Final = 1e-30
"""Of numbers that are all smaller nothing but zeros is kept: 127 by them would be infinite."""
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(jnp.bfloat16),
    "int8": INT8,
}


def cache_dtype_of(weight_type: str, kv_dtype: str = AUTO) -> np.dtype[Any]:
    """The type of keys and values.

    Args:
        weight_type: float32, bfloat16, int8 or int4.
        kv_dtype: As asked for: float32, bfloat16 or int8; `auto` is float32 beside float32 weights
            and bfloat16 beside all others.
    """
    if kv_dtype != AUTO:
        return _DTYPES[kv_dtype]
    return _DTYPES["float32" if weight_type == "float32" else "bfloat16"]


def require_cache_type(spec: DecoderSpec, kv_dtype: str) -> None:
    """Refuses a type that a decoder would have nothing of.

    Raises:
        ConfigurationError: Says what the decoder has instead, and what to choose.
    """
    if kv_dtype == AUTO:
        return
    attending = [layer.attention for layer in spec.layers if layer.is_attention]
    if not attending:
        raise ConfigurationError(
            f"kv-dtype {kv_dtype}: {spec.architecture} keeps no keys and values, its layers have"
            " recurrent states, which are float32; choose kv-dtype auto",
            param="kv_dtype",
        )
    if kv_dtype == INT8.name and any(attention.latent is not None for attention in attending):
        raise ConfigurationError(
            f"kv-dtype int8: the latent attention of {spec.architecture} keeps what the keys and"
            " values of all heads are made of, which isn't kept in int8; choose kv-dtype auto or"
            " bfloat16",
            param="kv_dtype",
        )


def quantized_tokens(tokens: jax.Array) -> jax.Array:
    """Keys or values of some tokens in int8, and behind each token's numbers its scale.

    Args:
        tokens: [..., D] of any float type.

    Returns:
        [..., D + SCALE_BYTES] int8; what isn't a number has a scale that is none.
    """
    numbers = tokens.astype(jnp.float32)
    largest = jnp.max(jnp.abs(numbers), axis=-1, keepdims=True)
    is_zero = largest < _LEAST
    rounded = jnp.round(numbers * jnp.where(is_zero, 0.0, _LARGEST / largest))
    # Divided, as the kernels do, so that both store the same bits: by a number that XLA would know
    # it would multiply instead.
    scales = jnp.where(is_zero, 0.0, largest / (_LARGEST + largest * 0.0))
    # An infinite number would leave others finite.
    scales += jnp.sum(numbers * 0.0, axis=-1, keepdims=True)
    values = jnp.clip(rounded, -_LARGEST, _LARGEST).astype(jnp.int8)
    bits = lax.bitcast_convert_type(scales[..., 0], jnp.int8)
    return jnp.concatenate([values, bits], axis=-1)


def dequantized(stored: jax.Array, axis: int) -> jax.Array:
    """Numbers of what `quantized_tokens` gave.

    Args:
        stored: int8, in which an axis has a token's numbers and its scale.
        axis: That one, counted from the end.

    Returns:
        float32, shorter by `SCALE_BYTES` in that axis.
    """
    values, bits = jnp.split(stored, [stored.shape[axis] - SCALE_BYTES], axis=axis)
    scales = lax.bitcast_convert_type(jnp.moveaxis(bits, axis, -1), jnp.float32)
    return values.astype(jnp.float32) * jnp.expand_dims(scales, axis)

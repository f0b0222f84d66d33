"""Logarithm, exponential and rank of float32 numbers with the same bits in every program.

A compiler may fuse a product and a sum into one rounding or not, and its own `log` and `exp` differ
between versions and devices. Here every product feeds at most one sum and no sum takes two
products, so a fused multiply-add can be placed in one way only, and no library function is called.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

# log(1 + t) / t on [1/sqrt(2) - 1, sqrt(2) - 1]; Chebyshev fit, relative error below 1e-7.
_LOG_COEFFICIENTS: Final = (
    0.0674140751,
    -0.117291443,
    0.119244464,
    -0.123989508,
    0.14212504,
    -0.16668053,
    0.200025827,
    -0.250000238,
    0.333333015,
    -0.5,
    1.0,
)
# exp(r) on [-ln(2) / 2, ln(2) / 2]; Chebyshev fit, relative error below 1e-7.
_EXP_COEFFICIENTS: Final = (
    0.00139489269,
    0.00837537088,
    0.0416662134,
    0.166664124,
    0.5,
    1.0,
    1.0,
)
_LN2_SCALED: Final = 11629080  # ln(2) * 2**24
_LN2_HIGH: Final = 0.693359375  # few bits, so that its product with an exponent is exact
_LN2_LOW: Final = -2.12194440e-4
_SQRT_HALF_BITS: Final = 0x3F3504F3
_ONE_BITS: Final = 0x3F800000
_MANTISSA_MASK: Final = 0x007FFFFF
_MANTISSA_BITS: Final = 23
_MIN_EXPONENT_INPUT: Final = -87.0


def polynomial(x: jax.Array, coefficients: tuple[float, ...]) -> jax.Array:
    """Horner's rule, highest power first."""
    result = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + jnp.float32(coefficient)
    return result


def scale_by_power_of_two(x: jax.Array, exponent: int) -> jax.Array:
    """`x * 2**exponent` without a product; x float32, zero or normal before and after."""
    bits = lax.bitcast_convert_type(x, jnp.int32) + (exponent << _MANTISSA_BITS)
    return jnp.where(x == 0, x, lax.bitcast_convert_type(bits, jnp.float32))


def split_mantissa(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Parts of x = (1 + t) * 2**e with 1 + t in [sqrt(1/2), sqrt(2)): t float32, exact, e int32.

    Args:
        x: Positive, normal, float32.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32) + (_ONE_BITS - _SQRT_HALF_BITS)
    exponent = (bits >> _MANTISSA_BITS) - 127
    mantissa = lax.bitcast_convert_type((bits & _MANTISSA_MASK) + _SQRT_HALF_BITS, jnp.float32)
    return mantissa - 1.0, exponent


def log_of_parts(t: jax.Array, exponent: jax.Array) -> jax.Array:
    """log((1 + t) * 2**exponent); t float32 in [-0.2929, 0.4143], exponent int32, |e| <= 180."""
    of_exponent = (exponent * _LN2_SCALED).astype(jnp.float32)
    return t * polynomial(t, _LOG_COEFFICIENTS) + scale_by_power_of_two(of_exponent, -24)


def log(x: jax.Array) -> jax.Array:
    """Natural logarithm of positive, normal float32 numbers; relative error about 2e-7."""
    return log_of_parts(*split_mantissa(x))


def exp(x: jax.Array) -> jax.Array:
    """The exponential of float32 numbers up to 0, minus infinity included; 0 below -87."""
    clipped = jnp.maximum(x, _MIN_EXPONENT_INPUT)
    exponent = jnp.floor(clipped * jnp.float32(1.44269504) + 0.5)
    reduced = clipped - exponent * jnp.float32(_LN2_HIGH)
    reduced = reduced - exponent * jnp.float32(_LN2_LOW)
    bits = lax.bitcast_convert_type(polynomial(reduced, _EXP_COEFFICIENTS), jnp.int32)
    bits = bits + (exponent.astype(jnp.int32) << _MANTISSA_BITS)
    result = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(x < _MIN_EXPONENT_INPUT, 0.0, result)


def to_rank(x: jax.Array) -> jax.Array:
    """float32 to uint32 so that x < y exactly when rank(x) < rank(y) (and -0 just below +0)."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def from_rank(rank: jax.Array) -> jax.Array:
    """The inverse of `to_rank`."""
    negative = rank >> 31 == 0
    bits = jnp.where(negative, ~rank, rank & jnp.uint32((1 << 31) - 1))
    return lax.bitcast_convert_type(bits, jnp.float32)

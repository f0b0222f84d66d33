"""Makes blocks of the formats that `gguf` reads and doesn't write, by plain rounding.

Scales are those of the extremes: llama.cpp searches for better ones, so its files are nearer to the
model than these. `tests/unit/engine_worker/compute/weights/test_gguf_blocks.py` holds each against
`gguf`'s own reading.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, quants

from engine_worker.compute.weights.stored_file import ReadOctets

Values = npt.NDArray[np.float32]
Blocks = npt.NDArray[Any]
_BLOCK = 256
_IQ4 = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))


def encoded(values: npt.NDArray[Any], kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    """A tensor in any format; vectors stay float32, as in llama.cpp."""
    values = values.astype(np.float32)
    if values.ndim < 2 or kind is GGMLQuantizationType.F32:
        return values
    if kind.name in ENCODERS:
        blocks = ENCODERS[kind.name](values.reshape(-1, BLOCK_SIZES.get(kind.name, _BLOCK)))
        return blocks.reshape(*values.shape[:-1], -1)
    written: Blocks = quants.quantize(values, kind)
    return written


def octets_of(data: npt.NDArray[Any]) -> ReadOctets:
    """Reads an array's bytes as those of a file."""
    octets = data.reshape(-1).view(np.uint8)

    def read(name: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        # Memory of their own, as what is read has.
        part: npt.NDArray[np.uint8] = octets[start:end].copy()
        return part

    return read


def _half(values: npt.NDArray[Any]) -> tuple[Blocks, Values]:
    """Of each block one number in half precision: its bytes, and what they stand for."""
    kept = values.astype(np.float16)
    return kept.reshape(-1, 1).view(np.uint8).reshape(-1, 2), kept.astype(np.float32)


def _over(values: npt.NDArray[Any], divisors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The nearest whole numbers of a quotient, 0 where the divisor is."""
    quotients: Blocks = np.divide(values, divisors, out=np.zeros_like(values), where=divisors != 0)
    return np.rint(quotients)


def _with_minima(
    rows: Values, num_groups: int, levels: int, largest: int
) -> tuple[Blocks, Blocks, npt.NDArray[Any], npt.NDArray[Any], Blocks]:
    """d, dmin, scales, minima and q where x is d·scale·q - dmin·minimum."""
    groups = rows.reshape(len(rows), num_groups, -1)
    minima = np.maximum(-groups.min(-1), 0)
    scales = (groups.max(-1) + minima).clip(0) / levels
    d_bytes, d = _half(scales.max(-1) / largest)
    m_bytes, dmin = _half(minima.max(-1) / largest)
    sc = _over(scales, np.broadcast_to(d[:, None], scales.shape)).clip(0, largest)
    m = _over(minima, np.broadcast_to(dmin[:, None], minima.shape)).clip(0, largest)
    shifted = groups + (dmin[:, None] * m)[..., None]
    q = _over(shifted, np.broadcast_to((d[:, None] * sc)[..., None], shifted.shape)).clip(0, levels)
    flat = q.astype(np.uint8).reshape(len(rows), -1)
    return d_bytes, m_bytes, sc.astype(np.uint8), m.astype(np.uint8), flat


def _six_bits(scales: Blocks, minima: Blocks) -> Blocks:
    """Eight scales and eight minima of six bits in twelve bytes."""
    low = (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6)
    high = (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6)
    rest = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return np.concatenate([low, high, rest], 1)


def _nibbles(q: Blocks, width: int) -> Blocks:
    """Pairs of `width` numbers in the low and the high halves of as many bytes."""
    pairs = q.reshape(len(q), -1, 2, width)
    packed: Blocks = pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    return packed.reshape(len(q), -1)


def _crumbs(q: Blocks, width: int) -> Blocks:
    """Fours of `width` two-bit numbers in as many bytes."""
    fours = q.reshape(len(q), -1, 4, width)
    packed: Blocks = fours[:, :, 0] | (fours[:, :, 1] << 2)
    packed |= (fours[:, :, 2] << 4) | (fours[:, :, 3] << 6)
    return packed.reshape(len(q), -1)


def _bits(q: Blocks) -> Blocks:
    """Eights of 32 bits in as many bytes."""
    eights = q.reshape(len(q), 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    packed: Blocks = np.bitwise_or.reduce(eights, axis=1)
    return packed


def q4_k(rows: Values) -> Blocks:
    d, dmin, scales, minima, q = _with_minima(rows, 8, 15, 63)
    return np.concatenate([d, dmin, _six_bits(scales, minima), _nibbles(q, 32)], 1)


def q5_k(rows: Values) -> Blocks:
    d, dmin, scales, minima, q = _with_minima(rows, 8, 31, 63)
    packed = _six_bits(scales, minima)
    return np.concatenate([d, dmin, packed, _bits(q >> 4), _nibbles(q & 15, 32)], 1)


def q2_k(rows: Values) -> Blocks:
    d, dmin, scales, minima, q = _with_minima(rows, 16, 3, 15)
    return np.concatenate([scales | (minima << 4), _crumbs(q, 32), d, dmin], 1)


def _signed(
    rows: Values, num_groups: int, half: int, largest: int
) -> tuple[Blocks, npt.NDArray[Any], npt.NDArray[Any]]:
    """d, whole scales and q from -half to half - 1 where x is d·scale·q."""
    groups = rows.reshape(len(rows), num_groups, -1)
    scales = np.abs(groups).max(-1) / (half - 0.5)
    d_bytes, d = _half(scales.max(-1) / largest)
    sc = _over(scales, np.broadcast_to(d[:, None], scales.shape)).clip(0, largest)
    step = np.broadcast_to((d[:, None] * sc)[..., None], groups.shape)
    q = _over(groups, step).clip(-half, half - 1)
    return d_bytes, sc, q.reshape(len(rows), -1)


def q6_k(rows: Values) -> Blocks:
    d, scales, signed = _signed(rows, 16, 32, 127)
    q = (signed + 32).astype(np.uint8)
    scale_bytes = scales.astype(np.int8).view(np.uint8)
    return np.concatenate([_nibbles(q & 15, 64), _crumbs(q >> 4, 32), scale_bytes, d], 1)


def q3_k(rows: Values) -> Blocks:
    d, scales, signed = _signed(rows, 16, 4, 31)
    q = (signed + 4).astype(np.uint8)
    six = (scales + 32).astype(np.uint8)
    low = (six[:, :8] & 15) | ((six[:, 8:] & 15) << 4)
    fours = (six >> 4).reshape(len(six), 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    packed = np.concatenate([low, np.bitwise_or.reduce(fours, axis=1)], 1)
    return np.concatenate([_bits(q >> 2), _crumbs(q & 3, 32), packed, d], 1)


def _nearest_iq4(values: npt.NDArray[Any]) -> Blocks:
    middles = (_IQ4[1:] + _IQ4[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def iq4_nl(rows: Values) -> Blocks:
    d_bytes, d = _half(np.abs(rows).max(-1) / 120)
    steps = np.divide(rows, d[:, None], out=np.zeros_like(rows), where=d[:, None] != 0)
    return np.concatenate([d_bytes, _nibbles(_nearest_iq4(steps), 16)], 1)


def iq4_xs(rows: Values) -> Blocks:
    groups = rows.reshape(len(rows), 8, 32)
    scales = np.abs(groups).max(-1) / 120
    d_bytes, d = _half(scales.max(-1) / 31)
    whole = _over(scales, np.broadcast_to(d[:, None], scales.shape)).clip(0, 31)
    step = (d[:, None] * whole)[..., None]
    steps = np.divide(groups, step, out=np.zeros_like(groups), where=step != 0)
    six = (whole + 32).astype(np.uint8)
    low = (six[:, ::2] & 15) | ((six[:, 1::2] & 15) << 4)
    high = np.bitwise_or.reduce(
        (six >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16), axis=1
    )
    high_bytes = high.reshape(-1, 1).view(np.uint8)
    q = _nibbles(_nearest_iq4(steps).reshape(len(rows), -1), 16)
    return np.concatenate([d_bytes, high_bytes, low, q], 1)


ENCODERS: dict[str, Callable[[Values], Blocks]] = {
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
}
BLOCK_SIZES = {"IQ4_NL": 32}
